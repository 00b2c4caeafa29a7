// What decides which CTA computes which output tile.

#pragma once

#include "gemm/config.hpp"
#include "mask/k_tiles.hpp"
#include "mask/slots.hpp"
#include "mask/warp_search.hpp"

namespace sparsedrop {

// Lines of tiles that a CTA keeps book of in the shared memory which the stages leave.
constexpr int32_t kMaxOwnLines = 256;

struct Ordering {
  Lines a_lines;
  Lines b_lines;
  Lines d_lines;
  FullGrid grid;
  Records records;  // of the whole grid
  int32_t tile_m;
  int32_t slot_n;
  SlotBits slots;
  bool one_each;  // see has_one_each()

  // Whether a product can do without a list.
  static bool suits(bool has_b_mask, bool has_d_mask, FullGrid const& grid) {
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           !(has_b_mask && has_d_mask);
  }

  // Whether every CTA gets one tile at most, and knows which without an order. With a mask on D,
  // that is its part of the grid, live or dropped: one slot, or two that are multiplied at once.
  static bool has_one_each(Lines const& d_lines, FullGrid const& grid, int32_t ctas,
                           bool slots_are_parallel) {
    bool const by_record = d_lines.words == nullptr || slots_are_parallel;
    bool const by_slot = grid.slots_per_tile == 2 && grid.lines * grid.slots <= ctas;
    return by_record ? grid.records(ctas).count() <= ctas : by_slot;
  }

  CUTLASS_DEVICE int32_t live_k_tiles(int32_t line) const {
    return KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count();
  }

  // Of one tile, whatever the masks.
  CUTLASS_DEVICE int32_t live_k_tiles_of(TileRecord const& tile) const {
    return KTiles(a_lines.of(tile.m * tile_m), b_lines.of(tile.slot[0] * slot_n), grid.k_tiles)
        .count();
  }

  CUTLASS_DEVICE int32_t live_slots(int32_t line) const {
    return d_lines.words == nullptr ? grid.slots
                                    : slots.count(d_lines.of(line * tile_m), 0, grid.slots);
  }

  // By a warp: the tile of `count` live slots, or of as many as are left, the first of which has
  // `rank` live ones before it in its line.
  CUTLASS_DEVICE TileRecord tile_at(int32_t line, int32_t rank, int32_t count,
                                    int32_t k_tiles) const {
    if (d_lines.words == nullptr) {
      return grid_tile(grid, line, rank, count, k_tiles);
    }
    uint32_t const* const words = d_lines.of(line * tile_m);
    int32_t const bit = nth_bit(words, d_lines.words_per_line, slots.firsts, rank);
    TileRecord tile{line, {bit / slots.units_per_slot}, k_tiles, 0};
    CUTLASS_PRAGMA_UNROLL
    for (int s = 1; s < kMaxSlots; ++s) {
      tile.slot[s] = s < count && tile.slot[s - 1] != kNoSlot
                         ? slots.next_live(words, tile.slot[s - 1], grid.slots)
                         : kNoSlot;
    }
    return tile;
  }
};

}  // namespace sparsedrop
