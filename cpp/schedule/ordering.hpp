// What decides which CTA computes which output tile.

#pragma once

#include "mask/k_tiles.hpp"
#include "mask/slots.hpp"
#include "schedule/tile_list.hpp"
#include "schedule/warp_search.hpp"

namespace sparsedrop {

// Lines of tiles that a CTA keeps book of in the shared memory which the stages leave.
constexpr int32_t kMaxOwnLines = 256;

struct Ordering {
  Lines a_lines;
  Lines b_lines;
  Lines d_lines;
  FullGrid grid;
  // The tiles of the whole grid: some lines', then the records of the others.
  NarrowLines narrow;
  FullGrid others;
  Records records;
  int32_t tile_m;
  int32_t slot_n;
  SlotBits slots;
  Divisor ctas;
  bool one_wave;  // see has_one_wave()
  bool one_each;  // and that tile is known before lines are sorted

  // Whether a product can do without a list.
  static bool suits(bool has_b_mask, bool has_d_mask, FullGrid const& grid) {
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           !(has_b_mask && has_d_mask);
  }

  // Whether every CTA gets one tile at most, by its index. With a mask on D, that is its part of
  // the grid, live or dropped: one slot, or two that are multiplied at once.
  static bool has_one_wave(Lines const& d_lines, FullGrid const& grid, int32_t ctas,
                           bool slots_are_parallel) {
    bool const by_record = d_lines.words == nullptr || slots_are_parallel;
    bool const by_slot = grid.slots_per_tile == 2 && grid.lines * grid.slots <= ctas;
    return by_record ? grid.records(ctas).count() <= ctas : by_slot;
  }

  // Which lines are cut narrower where every CTA gets one tile at most. It pays where lines differ
  // in their live K tiles; slots that are multiplied at once take as long alone as together.
  static NarrowLines narrow_lines(Lines const& a_lines, Lines const& d_lines, FullGrid const& grid,
                                  int32_t ctas, bool slots_are_parallel) {
    bool const pays = a_lines.words != nullptr && d_lines.words == nullptr && !slots_are_parallel;
    return pays ? NarrowLines(grid, ctas) : NarrowLines();
  }

  // Whether lines of tiles have K tiles of their own, by which they are sorted.
  SPARSEDROP_DEVICE bool lines_differ() const { return a_lines.words != nullptr; }

  SPARSEDROP_DEVICE int32_t live_k_tiles(int32_t line) const {
    return KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count();
  }

  // Of one tile, whatever the masks.
  SPARSEDROP_DEVICE int32_t live_k_tiles_of(TileRecord const& tile) const {
    return KTiles(a_lines.of(tile.m * tile_m), b_lines.of(tile.slot[0] * slot_n), grid.k_tiles)
        .count();
  }

  SPARSEDROP_DEVICE int32_t live_slots(int32_t line) const {
    return slots.count(d_lines.of(line * tile_m), 0, grid.slots);
  }

  // By a warp, with a mask on D: the tile of `count` live slots, or of as many as are left, the
  // first of which has `rank` live ones before it in its line. Its K tiles are not counted.
  SPARSEDROP_DEVICE TileRecord live_tile(int32_t line, int32_t rank, int32_t count) const {
    uint32_t const* const words = d_lines.of(line * tile_m);
    TileRecord tile = grid_tile(grid, line, 0, 0, 0);
    int32_t before = 0;  // live slots in the words before
    for (int32_t w = 0; w < d_lines.words_per_line && before < rank + count; ++w) {
      uint32_t const word = slots.live_in_word(words, w, grid.slots);
      bool const is_live = (word >> lane_id() & 1u) != 0;
      int32_t const own_rank = before + count_bits(word & lower_lanes());
#pragma unroll
      for (int s = 0; s < kMaxSlots; ++s) {
        uint32_t const found = __ballot_sync(kAllLanes, is_live && own_rank == rank + s);
        if (s < count && found != 0) {
          tile.slot[s] = slots.slot_of(32 * w + lowest_bit(found));
        }
      }
      before += count_bits(word);
    }
    return tile;
  }
};

}  // namespace sparsedrop
