// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and deals itself every ctas-th tile.

#pragma once

#include "gemm/config.hpp"
#include "mask/k_tiles.hpp"
#include "mask/slots.hpp"

namespace sparsedrop {

// Lines that fit the shared memory which the stages leave: one warp sums up their groups.
constexpr int32_t kMaxOwnLines = 256;
constexpr int32_t kGroups = kMaxOwnLines / kLinesPerGroup;
static_assert(kGroups <= 32, "one lane of a warp sums up a group");

struct OwnOrder {
  // By line
  uint16_t live[kMaxOwnLines];  // K tiles of A
  // By position in the order: lines with the most live K tiles first
  uint16_t order[kMaxOwnLines];
  // With a mask on D, by position: tiles of live slots only, and whether a live slot is left over
  uint16_t whole[kMaxOwnLines];
  uint32_t left_over[kMaxOwnLines / 32];
  int32_t group_start[kGroups + 1];

  // Whether a product can do without a list.
  static bool suits(Lines const& b_lines, Lines const& d_lines, FullGrid const& grid) {
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           (b_lines.words == nullptr || d_lines.words == nullptr);
  }

  // Whether every CTA gets one tile at most, and knows which without an order.
  static bool is_needless(Lines const& d_lines, FullGrid const& grid, int32_t ctas) {
    return d_lines.words == nullptr && records_of(grid, ctas).count() <= ctas;
  }

  // The tile of this CTA where that is so, without its count of K tiles; perhaps there is none.
  CUTLASS_DEVICE static TileRecord only_tile(FullGrid const& grid) {
    Records const records = records_of(grid, int32_t(gridDim.x));
    if (int32_t(blockIdx.x) >= records.count()) {
      return {0, {0, kNoSlot}, kNoMoreTiles};
    }
    Records::Part const part = records.at(int32_t(blockIdx.x));
    GroupPlace const at = place_in_grid(grid, part);
    int32_t const slot = at.tile * grid.slots_per_tile + part.place;
    return {at.position, {slot, part.slots > 1 ? slot + 1 : kNoSlot}, 0};
  }

  // By all threads of the CTA. `scratch` is 1 KB of shared memory.
  CUTLASS_DEVICE void make(Lines const& a_lines, Lines const& d_lines, FullGrid const& grid,
                           int32_t tile_m, SlotBits slots, void* scratch) {
    order_lines(a_lines, grid, tile_m, static_cast<uint4*>(scratch));
    if (d_lines.words != nullptr) {
      count_tiles(d_lines, grid, tile_m, slots);
    }
  }

  // By one thread: calls `take` with the records of one CTA, every ctas-th of all.
  template <class CountKTiles, class Take>
  CUTLASS_DEVICE void deal(Lines const& d_lines, FullGrid const& grid, int32_t tile_m,
                           SlotBits slots, CountKTiles count_k_tiles, Take take) const {
    bool const has_mask = d_lines.words != nullptr;
    auto const ctas = int32_t(gridDim.x);
    auto const cta = int32_t(blockIdx.x);
    Records const records =
        has_mask ? Records(group_start[kGroups], count_left_over(), grid.slots_per_tile, ctas)
                 : records_of(grid, ctas);
    for (int32_t wave = 0, index = cta; index < records.count();
         index = dealt_index(++wave, cta, ctas)) {
      Records::Part const part = records.at(index);
      GroupPlace const at = has_mask ? masked_place(grid, part) : place_in_grid(grid, part);
      int32_t const line = order[at.position];
      int32_t const rank = at.tile * grid.slots_per_tile + part.place;
      auto slot_at = [&](int32_t live_rank) {
        return has_mask ? slots.nth_live(d_lines.of(line * tile_m), live_rank) : live_rank;
      };
      TileRecord record{line, {slot_at(rank), part.slots > 1 ? slot_at(rank + 1) : kNoSlot}, 0};
      record.k_tiles = count_k_tiles(record);
      take(record);
    }
  }

 private:
  // A line's position is the number of lines that come before it: those with a larger key, more
  // live K tiles or as many and a lower index.
  CUTLASS_DEVICE void order_lines(Lines const& a_lines, FullGrid const& grid, int32_t tile_m,
                                  uint4* scratch) {
    constexpr int kKeys = sizeof(uint4) / sizeof(uint32_t);
    auto const line = int32_t(threadIdx.x);
    bool const is_one = line < grid.lines;
    uint32_t key = 0;  // behind all lines
    if (is_one) {
      live[line] = uint16_t(KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count());
      key = uint32_t(live[line]) * kMaxOwnLines + uint32_t(kMaxOwnLines - line);
    }
    if (line < kMaxOwnLines) {
      reinterpret_cast<uint32_t*>(scratch)[line] = key;
    }
    __syncthreads();
    if (is_one) {
      int32_t position = 0;
#pragma unroll 4
      for (int32_t i = 0; i < int32_t(ceil_div(grid.lines, kKeys)); ++i) {
        uint4 const others = scratch[i];
        position += (others.x > key) + (others.y > key) + (others.z > key) + (others.w > key);
      }
      order[position] = uint16_t(line);
    }
    __syncthreads();
  }

  CUTLASS_DEVICE int32_t count_left_over() const {
    int32_t count = 0;
    for (uint32_t word : left_over) {
      count += count_bits(word);
    }
    return count;
  }

  CUTLASS_DEVICE GroupPlace masked_place(FullGrid const& grid, Records::Part const& part) const {
    if (part.is_single) {
      int32_t const position = SlotBits::of(1, 1).nth_live(left_over, part.number);
      return {position, whole[position]};
    }
    return place_in_groups(part.number, grid.lines, whole, group_start);
  }

  CUTLASS_DEVICE void count_tiles(Lines const& d_lines, FullGrid const& grid, int32_t tile_m,
                                  SlotBits slots) {
    auto const position = int32_t(threadIdx.x);
    if (position < kMaxOwnLines) {
      int32_t live_slots = 0;
      if (position < grid.lines) {
        live_slots = slots.count(d_lines.of(order[position] * tile_m), 0, grid.slots);
      }
      whole[position] = uint16_t(live_slots / grid.slots_per_tile);
      unsigned const odd = __ballot_sync(0xffffffffu, live_slots % grid.slots_per_tile != 0);
      if (position % 32 == 0) {
        left_over[position / 32] = odd;
      }
    }
    __syncthreads();
    if (position < 32) {
      int32_t sum = 0;
      for (int32_t i = 0; i < kLinesPerGroup && position < kGroups; ++i) {
        sum += whole[position * kLinesPerGroup + i];
      }
      for (int offset = 1; offset < 32; offset *= 2) {
        int32_t const lower = __shfl_up_sync(0xffffffffu, sum, offset);
        sum += position >= offset ? lower : 0;
      }
      if (position < kGroups) {
        group_start[position + 1] = sum;
      }
      if (position == 0) {
        group_start[0] = 0;
      }
    }
    __syncthreads();
  }
};

}  // namespace sparsedrop
