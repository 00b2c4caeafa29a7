// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and deals itself its share of the tiles; where
// there is one tile for each CTA at most, it follows from the CTA's index, and from the order only
// where some lines are cut narrower.

#pragma once

#include "schedule/ordering.hpp"
#include "schedule/warp_search.hpp"

namespace sparsedrop {

static_assert(kMaxGroups <= 32, "one lane of a warp sums up a group");
static_assert(kMaxGroups << kMaxGroupShift == kMaxOwnLines, "every line is in a group");

// Of a CTA of at least `kThreads` threads, whole warps: each stands for a line or a seat, or for
// several.
class OwnOrder {
 public:
  static constexpr int kScratchBytes = kMaxOwnLines * int(sizeof(uint32_t));

  // By all threads of the CTA, where lines differ in their K tiles. A line's position is the number
  // of lines that come before it: those with a larger key, more live K tiles or as many and a lower
  // index. `scratch` is kScratchBytes of shared memory.
  template <int kThreads = kMaxOwnLines>
  SPARSEDROP_DEVICE void sort_lines(Ordering const& by, uint4* scratch) {
    constexpr int kRounds = kMaxOwnLines / kThreads;
    static_assert(kRounds * kThreads == kMaxOwnLines, "threads share the lines evenly");
    uint32_t keys[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      keys[round] = key_line(by, int32_t(threadIdx.x) + round * kThreads, scratch);
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      place_line(by, int32_t(threadIdx.x) + round * kThreads, keys[round], scratch);
    }
    __syncthreads();
  }

  // By all threads of the CTA, with a mask on D: counts the tiles of each line.
  template <int kThreads = kMaxOwnLines>
  SPARSEDROP_DEVICE void count_tiles(Ordering const& by) {
    constexpr int kRounds = kMaxOwnLines / kThreads;
    static_assert(kRounds * kThreads == kMaxOwnLines, "threads share the seats evenly");
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      count_tiles_at(by, int32_t(threadIdx.x) + round * kThreads);
    }
    __syncthreads();
  }

  // By a warp: the `turn`-th tile of this CTA, or the end marker. Turns come one after the other,
  // and end with the first marker.
  SPARSEDROP_DEVICE TileRecord tile_of_turn(Ordering const& by, int32_t turn) const {
    TileRecord tile;
    if (by.d_lines.words != nullptr) {
      tile = masked_tile(by, sum_up(by), turn);
    } else {
      Span const span = by.span(by.one_wave ? int32_t(blockIdx.x) : dealt(by.records, turn));
      tile = by.tile_of(span, line_at(by, span.position));
    }
    if (tile.k_tiles != kNoMoreTiles) {
      tile.k_tiles = count_k_tiles(by, tile);
    }
    return tile;
  }

  // By a warp: the first tile of one CTA, as Records deals them; its K tiles are not counted.
  SPARSEDROP_DEVICE TileRecord first_tile(Ordering const& by, Span const& span) const {
    return by.d_lines.words == nullptr ? by.tile_of(span, line_at(by, span.position))
                                       : masked_tile(by, sum_up(by), 0);
  }

  // By a warp: calls `take` with the tiles of one CTA, from the `first` on.
  template <class Take>
  SPARSEDROP_DEVICE void deal(Ordering const& by, TileRecord const& first, Take take) const {
    bool const has_mask = by.d_lines.words != nullptr;
    Sums const sums = has_mask ? sum_up(by) : Sums{by.records, 0};
    TileRecord tile = first;
    for (int32_t turn = 1; tile.k_tiles != kNoMoreTiles; ++turn) {
      tile.k_tiles = count_k_tiles(by, tile);
      int32_t const next = dealt(sums.records, turn);
      tile.is_last = by.one_wave || next >= sums.records.count() ? 1 : 0;
      take(tile);
      if (by.one_wave) {
        break;
      }
      if (has_mask) {
        tile = masked_tile(by, sums, turn);
      } else {
        Span const span = by.span(next);
        tile = by.tile_of(span, line_at(by, span.position));
      }
    }
  }

 private:
  static constexpr int32_t kGroupLines = 1 << kMaxGroupShift;

  // The first half of sorting, of one line: writes down its key and returns it.
  SPARSEDROP_DEVICE uint32_t key_line(Ordering const& by, int32_t line, uint4* scratch) {
    uint32_t key = 0;  // behind all lines
    if (line < by.grid.lines) {
      live_[line] = uint16_t(by.live_k_tiles(line));
      key = uint32_t(live_[line]) * kMaxOwnLines + uint32_t(kMaxOwnLines - line);
    }
    if (line < kMaxOwnLines) {
      reinterpret_cast<uint32_t*>(scratch)[line] = key;
    }
    return key;
  }

  // The second half.
  SPARSEDROP_DEVICE void place_line(Ordering const& by, int32_t line, uint32_t key,
                                    uint4 const* scratch) {
    constexpr int kKeys = sizeof(uint4) / sizeof(uint32_t);
    if (line < by.grid.lines) {
      int32_t position = 0;
#pragma unroll 4
      for (int32_t i = 0; i < int32_t(ceil_div(by.grid.lines, kKeys)); ++i) {
        uint4 const others = scratch[i];
        position += (others.x > key) + (others.y > key) + (others.z > key) + (others.w > key);
      }
      order_[position] = uint16_t(line);
    }
  }

  // By a warp of neighbouring seats.
  SPARSEDROP_DEVICE void count_tiles_at(Ordering const& by, int32_t seat) {
    if (seat < kMaxOwnLines) {
      int32_t const position = position_of(by.grid, seat);
      bool const is_taken =
          (seat & (kGroupLines - 1)) >> by.grid.shift == 0 && position < by.grid.lines;
      int32_t const live_slots = is_taken ? by.live_slots(line_at(by, position)) : 0;
      whole_[seat] = uint16_t(whole_tiles(live_slots, by.grid.slots_per_tile));
      unsigned const with_rest =
          __ballot_sync(kAllLanes, rest_slots(live_slots, by.grid.slots_per_tile) != 0);
      if (lane_id() == 0) {
        has_rest_[seat / kWarp] = with_rest;
      }
    }
  }

  // The live K tiles of a tile.
  SPARSEDROP_DEVICE int32_t count_k_tiles(Ordering const& by, TileRecord const& tile) const {
    return by.b_lines.words != nullptr ? by.k_tiles_of(tile).count()
           : by.lines_differ()         ? live_[tile.m]
                                       : by.grid.k_tiles;
  }

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

  // Each group has seats for as many lines as the largest has. The position of the line in one.
  SPARSEDROP_DEVICE static int32_t position_of(Grid const& grid, int32_t seat) {
    return (seat / kGroupLines << grid.shift) + seat % kGroupLines;
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
    Piece const piece = sums.records.at(index);
    Place at;
    if (piece.is_rest) {
      int32_t const seat = nth_bit(has_rest_, kMaxOwnLines / kWarp, piece.number);
      at = {position_of(by.grid, seat), whole_[seat]};
    } else {
      at = place_in_groups(piece.number, by.grid.shift, groups(), sums.group_start);
    }
    int32_t const rank = at.tile * by.grid.slots_per_tile + piece.first_slot;
    return gather(by, line_at(by, at.position), rank, piece.slots);
  }

  // By a warp, with a mask on D: the tile of `count` live slots, or of as many as are left, the
  // first of which has `rank` live ones before it in its line. Wherever in the line they lie, they
  // share one list of K tiles: B has no mask then (Ordering::suits). Its K tiles are not counted.
  SPARSEDROP_DEVICE static TileRecord gather(Ordering const& by, int32_t line, int32_t rank,
                                             int32_t count) {
    uint32_t const* const words = by.d_lines.of(line * by.tile_m);
    TileRecord tile = neighbouring_slots(by.grid, line, 0, 0, 0);
    int32_t before = 0;  // live slots in the words before
    for (int32_t w = 0; w < by.d_lines.words_per_line && before < rank + count; ++w) {
      uint32_t const word = by.slots.live_in_word(words, w, by.grid.slots);
      bool const is_live = (word >> lane_id() & 1u) != 0;
      int32_t const own_rank = before + count_bits(word & lower_lanes());
#pragma unroll
      for (int s = 0; s < kMaxSlots; ++s) {
        uint32_t const found = __ballot_sync(kAllLanes, is_live && own_rank == rank + s);
        if (s < count && found != 0) {
          tile.slot[s] = by.slots.slot_of(32 * w + lowest_bit(found));
        }
      }
      before += count_bits(word);
    }
    return tile;
  }

  // Where lines differ: the live K tiles of A, by line.
  uint16_t live_[kMaxOwnLines];
  // Where lines differ: the lines by position, those with the most live K tiles first.
  uint16_t order_[kMaxOwnLines];
  // With a mask on D, by seat: tiles of live slots only, and whether live slots are left over.
  alignas(sizeof(GroupCounts)) uint16_t whole_[kMaxOwnLines];
  alignas(sizeof(uint4)) uint32_t has_rest_[kMaxOwnLines / kWarp];
};

}  // namespace sparsedrop
