// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and deals itself its share of the tiles; where
// there is a tile for each CTA at most, its own follows from its index, and from the order only
// where some lines are cut narrower.

#pragma once

#include "schedule/ordering.hpp"

namespace sparsedrop {

static_assert(kMaxGroups <= 32, "one lane of a warp sums up a group");
static_assert(kMaxGroups << kMaxGroupShift == kMaxOwnLines, "every line is in a group");

class OwnOrder {
 public:
  // Neighbouring slots of the whole grid.
  struct Run {
    int32_t position;  // of the line, in the order of lines
    int32_t slot;
    int32_t slots;  // 0 where there is no record
  };
  SPARSEDROP_DEVICE static Run run_of(Ordering const& by, int32_t index) {
    int32_t const per_tile = by.grid.slots_per_tile;
    if (index < by.narrow.count()) {
      GroupPlace const at = by.narrow.place(index);
      return {at.position, at.tile * (per_tile - 1), per_tile - 1};
    }
    index -= by.narrow.count();
    if (index >= by.records.count()) {
      return {0, 0, 0};
    }
    Records::Part const part = by.records.at(index);
    GroupPlace const at = by.others.place(part);
    return {by.narrow.lines + at.position, at.tile * per_tile + part.place, part.slots};
  }

  // Its K tiles are not counted.
  SPARSEDROP_DEVICE static TileRecord tile_of(Ordering const& by, Run const& run, int32_t line) {
    return run.slots == 0 ? no_more_tiles() : grid_tile(by.grid, line, run.slot, run.slots, 0);
  }

  // The tile of a CTA that has one at most, if it is live; its K tiles are not counted.
  SPARSEDROP_DEVICE static TileRecord only_tile(Ordering const& by, Run const& run) {
    TileRecord const tile = tile_of(by, run, run.position);
    if (by.d_lines.words == nullptr || tile.k_tiles == kNoMoreTiles) {
      return tile;
    }
    uint32_t const* const line = by.d_lines.of(tile.m * by.tile_m);
    int32_t const slot = tile.slot[0];
    bool const is_live = by.slots.is_live(line, slot);
    if (tile.slot[1] == kNoSlot || !by.slots.is_live(line, slot + 1)) {
      return is_live ? grid_tile(by.grid, tile.m, slot, 1, 0) : no_more_tiles();
    }
    return is_live ? tile : grid_tile(by.grid, tile.m, slot + 1, 1, 0);
  }

  // By all threads of the CTA, where lines differ in their K tiles. A line's position is the number
  // of lines that come before it: those with a larger key, more live K tiles or as many and a lower
  // index. `scratch` is 1 KB of shared memory.
  SPARSEDROP_DEVICE void sort_lines(Ordering const& by, uint4* scratch) {
    constexpr int kKeys = sizeof(uint4) / sizeof(uint32_t);
    auto const line = int32_t(threadIdx.x);
    bool const is_one = line < by.grid.lines;
    uint32_t key = 0;  // behind all lines
    if (is_one) {
      live_[line] = uint16_t(by.live_k_tiles(line));
      key = uint32_t(live_[line]) * kMaxOwnLines + uint32_t(kMaxOwnLines - line);
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
      order_[position] = uint16_t(line);
    }
    __syncthreads();
  }

  // By all threads of the CTA, with a mask on D: counts the tiles of each line.
  SPARSEDROP_DEVICE void count_tiles(Ordering const& by) {
    auto const place = int32_t(threadIdx.x);
    if (place < kMaxOwnLines) {
      int32_t const position = position_of(by.grid, place);
      bool const is_one =
          (place & (kGroupLines - 1)) >> by.grid.shift == 0 && position < by.grid.lines;
      int32_t const live_slots = is_one ? by.live_slots(line_at(by, position)) : 0;
      whole_[place] = uint16_t(whole_tiles(live_slots, by.grid.slots_per_tile));
      unsigned const with_rest =
          __ballot_sync(kAllLanes, rest_slots(live_slots, by.grid.slots_per_tile) != 0);
      if (lane_id() == 0) {
        has_rest_[place / kWarp] = with_rest;
      }
    }
    __syncthreads();
  }

  // By a warp: the first tile of one CTA, as Records deals them; its K tiles are not counted.
  SPARSEDROP_DEVICE TileRecord first_tile(Ordering const& by, Run const& run) const {
    return by.d_lines.words == nullptr ? tile_of(by, run, line_at(by, run.position))
                                       : masked_tile(by, sum_up(by), 0);
  }

  // By a warp: calls `take` with the tiles of one CTA, from the `first` on.
  template <class Take>
  SPARSEDROP_DEVICE void deal(Ordering const& by, TileRecord const& first, Take take) const {
    bool const has_mask = by.d_lines.words != nullptr;
    Sums const sums = has_mask ? sum_up(by) : Sums{by.records, 0};
    TileRecord tile = first;
    for (int32_t turn = 1; tile.k_tiles != kNoMoreTiles; ++turn) {
      tile.k_tiles = by.b_lines.words != nullptr ? by.live_k_tiles_of(tile)
                     : by.lines_differ()         ? live_[tile.m]
                                                 : by.grid.k_tiles;
      int32_t const next = dealt(sums.records, turn);
      tile.is_last = by.one_wave || next >= sums.records.count() ? 1 : 0;
      take(tile);
      if (by.one_wave) {
        break;
      }
      if (has_mask) {
        tile = masked_tile(by, sums, turn);
      } else {
        Run const run = run_of(by, next);
        tile = tile_of(by, run, line_at(by, run.position));
      }
    }
  }

 private:
  static constexpr int32_t kWarp = 32;
  static constexpr int32_t kGroupLines = 1 << kMaxGroupShift;

  struct Sums {
    Records records;
    int32_t group_start;  // of the group whose number is the lane's: whole tiles before it
  };

  SPARSEDROP_DEVICE static int32_t dealt(Records const& records, int32_t turn) {
    return records.dealt(turn, int32_t(blockIdx.x), int32_t(gridDim.x));
  }

  SPARSEDROP_DEVICE int32_t line_at(Ordering const& by, int32_t position) const {
    return by.lines_differ() ? order_[position] : position;
  }

  // Each group has room for as many lines as the largest has.
  SPARSEDROP_DEVICE static int32_t position_of(FullGrid const& grid, int32_t place) {
    return (place / kGroupLines << grid.shift) + place % kGroupLines;
  }

  SPARSEDROP_DEVICE GroupCounts const* groups() const {
    return reinterpret_cast<GroupCounts const*>(whole_);
  }

  // By a warp, of which each lane has a group.
  SPARSEDROP_DEVICE Sums sum_up(Ordering const& by) const {
    int32_t const in_group = sum_up_to(UINT16_MAX, groups()[lane_id()]);
    int32_t const through = inclusive_sum_in_warp(in_group);
    int32_t const whole = __shfl_sync(kAllLanes, through, kWarp - 1);
    int32_t rests = 0;
#pragma unroll
    for (uint32_t word : has_rest_) {
      rests += count_bits(word);
    }
    return {Records(whole, rests, by.grid.slots_per_tile, by.ctas), through - in_group};
  }

  // By a warp, with a mask on D: the tile that is the `turn`-th of this CTA.
  SPARSEDROP_DEVICE TileRecord masked_tile(Ordering const& by, Sums const& sums,
                                           int32_t turn) const {
    int32_t const index = dealt(sums.records, turn);
    if (index >= sums.records.count()) {
      return no_more_tiles();
    }
    Records::Part const part = sums.records.at(index);
    GroupPlace at;
    if (part.is_rest) {
      int32_t const place = nth_bit(has_rest_, kMaxOwnLines / kWarp, part.number);
      at = {position_of(by.grid, place), whole_[place]};
    } else {
      at = place_in_groups(part.number, by.grid.shift, groups(), sums.group_start);
    }
    return by.live_tile(line_at(by, at.position), at.tile * by.grid.slots_per_tile + part.place,
                        part.slots);
  }

  // Where lines differ, by line: K tiles of A
  uint16_t live_[kMaxOwnLines];
  // and by position in the order: lines with the most live K tiles first.
  uint16_t order_[kMaxOwnLines];
  // With a mask on D, by group and line of the group: tiles of live slots only, and whether live
  // slots are left over.
  alignas(sizeof(GroupCounts)) uint16_t whole_[kMaxOwnLines];
  alignas(sizeof(uint4)) uint32_t has_rest_[kMaxOwnLines / kWarp];
};

}  // namespace sparsedrop
