// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and deals itself its share of the tiles; where
// there is a tile for each CTA at most, its own follows from its index.

#pragma once

#include "gemm/ordering.hpp"

namespace sparsedrop {

static_assert(kMaxGroups <= 32, "one lane of a warp sums up a group");
static_assert(kMaxGroups << kMaxGroupShift >= kMaxOwnLines, "every line is in a group");

struct OwnOrder {
  // By line
  uint16_t live[kMaxOwnLines];  // K tiles of A
  // By position in the order: lines with the most live K tiles first
  uint16_t order[kMaxOwnLines];
  // With a mask on D, by position: tiles of live slots only, and whether live slots are left over
  uint16_t whole[kMaxOwnLines];
  uint32_t has_rest[kMaxOwnLines / 32];
  int32_t group_start[kMaxGroups + 1];
  Records records;

  // The tile of CTA `cta` where there is one for each, if there is one and it is live; its K tiles
  // are not counted.
  CUTLASS_DEVICE static TileRecord only_tile(Ordering const& by, int32_t cta) {
    if (cta >= by.records.count()) {
      return no_more_tiles();
    }
    Records::Part const part = by.records.at(cta);
    GroupPlace const at = by.grid.place(part);
    int32_t const slot = at.tile * by.grid.slots_per_tile + part.place;
    if (by.d_lines.words == nullptr) {
      return grid_tile(by.grid, at.position, slot, part.slots, 0);
    }
    uint32_t const* const line = by.d_lines.of(at.position * by.tile_m);
    bool const is_live = by.slots.is_live(line, slot);
    if (part.slots == 1 || !by.slots.is_live(line, slot + 1)) {
      return is_live ? grid_tile(by.grid, at.position, slot, 1, 0) : no_more_tiles();
    }
    return is_live ? grid_tile(by.grid, at.position, slot, 2, 0)
                   : grid_tile(by.grid, at.position, slot + 1, 1, 0);
  }

  // By all threads of the CTA. `scratch` is 1 KB of shared memory.
  CUTLASS_DEVICE void make(Ordering const& by, void* scratch) {
    order_lines(by, static_cast<uint4*>(scratch));
    bool const has_mask = by.d_lines.words != nullptr;
    if (has_mask) {
      count_tiles(by);
    }
    if (threadIdx.x == 0) {
      records = has_mask ? Records(group_start[kMaxGroups], count_rests(), by.grid.slots_per_tile,
                                   int32_t(gridDim.x))
                         : by.records;
    }
    __syncthreads();
  }

  // By a warp: calls `take` with the tiles of one CTA, as Records deals them.
  template <class Take>
  CUTLASS_DEVICE void deal(Ordering const& by, Take take) const {
    FullGrid const& grid = by.grid;
    bool const has_mask = by.d_lines.words != nullptr;
    for (int32_t turn = 0;; ++turn) {
      int32_t const index = records.dealt(turn, int32_t(blockIdx.x), int32_t(gridDim.x));
      if (index >= records.count()) {
        break;
      }
      Records::Part const part = records.at(index);
      GroupPlace const at = has_mask ? masked_place(grid, part) : grid.place(part);
      int32_t const line = order[at.position];
      TileRecord tile =
          by.tile_at(line, at.tile * grid.slots_per_tile + part.place, part.slots, live[line]);
      if (by.b_lines.words != nullptr) {
        tile.k_tiles = by.live_k_tiles_of(tile);
      }
      take(tile);
    }
  }

 private:
  // A line's position is the number of lines that come before it: those with a larger key, more
  // live K tiles or as many and a lower index.
  CUTLASS_DEVICE void order_lines(Ordering const& by, uint4* scratch) {
    constexpr int kKeys = sizeof(uint4) / sizeof(uint32_t);
    auto const line = int32_t(threadIdx.x);
    bool const is_one = line < by.grid.lines;
    if (by.a_lines.words == nullptr) {
      if (is_one) {
        live[line] = uint16_t(by.grid.k_tiles);
        order[line] = uint16_t(line);
      }
      __syncthreads();
      return;
    }
    uint32_t key = 0;  // behind all lines
    if (is_one) {
      live[line] = uint16_t(by.live_k_tiles(line));
      key = uint32_t(live[line]) * kMaxOwnLines + uint32_t(kMaxOwnLines - line);
    }
    if (line < kMaxOwnLines) {
      reinterpret_cast<uint32_t*>(scratch)[line] = key;
    }
    __syncthreads();
    if (is_one) {
      int32_t position = 0;
#pragma unroll 4
      for (int32_t i = 0; i < int32_t(ceil_div(by.grid.lines, kKeys)); ++i) {
        uint4 const others = scratch[i];
        position += (others.x > key) + (others.y > key) + (others.z > key) + (others.w > key);
      }
      order[position] = uint16_t(line);
    }
    __syncthreads();
  }

  CUTLASS_DEVICE int32_t count_rests() const {
    int32_t count = 0;
    for (uint32_t word : has_rest) {
      count += count_bits(word);
    }
    return count;
  }

  CUTLASS_DEVICE GroupPlace masked_place(FullGrid const& grid, Records::Part const& part) const {
    if (part.is_rest) {
      constexpr int32_t kWords = kMaxOwnLines / 32;
      int32_t const position = nth_bit(has_rest, kWords, kAllLanes, part.number);
      return {position, whole[position]};
    }
    return place_in_groups(part.number, grid.lines, grid.shift, whole, group_start);
  }

  CUTLASS_DEVICE void count_tiles(Ordering const& by) {
    FullGrid const& grid = by.grid;
    auto const position = int32_t(threadIdx.x);
    if (position < kMaxOwnLines) {
      int32_t live_slots = 0;
      if (position < grid.lines) {
        live_slots = by.live_slots(order[position]);
      }
      whole[position] = uint16_t(whole_tiles(live_slots, grid.slots_per_tile));
      unsigned const with_rest =
          __ballot_sync(kAllLanes, rest_slots(live_slots, grid.slots_per_tile) != 0);
      if (position % 32 == 0) {
        has_rest[position / 32] = with_rest;
      }
    }
    __syncthreads();
    if (position < 32) {
      int32_t sum = 0;
      int32_t const end = (position + 1) << grid.shift;
      for (int32_t i = position << grid.shift; i < end && position < kMaxGroups; ++i) {
        sum += whole[i];
      }
      sum = inclusive_sum_in_warp(sum);
      if (position < kMaxGroups) {
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
