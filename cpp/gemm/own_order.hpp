// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and finds its own part of the work.

#pragma once

#include "gemm/config.hpp"
#include "mask/k_tiles.hpp"
#include "mask/shares.hpp"
#include "mask/slots.hpp"

namespace sparsedrop {

// Lines that fit the shared memory which the stages leave: one warp sums up their groups.
constexpr int32_t kMaxOwnLines = kMaxGroups * kLinesPerGroup;
static_assert(kMaxGroups == cutlass::NumThreadsPerWarp, "one lane of a warp sums up a group");

// What orders the tiles of a product.
struct Ordering {
  Lines a_lines;
  Lines b_lines;
  Lines d_lines;
  FullGrid grid;
  int32_t tile_m;
  int32_t slot_n;
  SlotBits slots;
  bool in_step;  // see plan_of
};

struct OwnOrder {
  // By position in the order: lines with the most live K tiles first
  uint16_t order[kMaxOwnLines];
  uint16_t live[kMaxOwnLines];           // K tiles of A
  uint16_t whole[kMaxOwnLines];          // tiles of live slots only
  uint32_t left_over[kMaxOwnLines / 32];  // whether a live slot has no partner
  // Sums over the groups before
  int32_t whole_count[kMaxGroups + 1];
  int64_t whole_work[kMaxGroups + 1];
  int64_t single_work[kMaxGroups + 1];

  // Whether a product can do without a list.
  static bool suits(Lines const& b_lines, Lines const& d_lines, FullGrid const& grid) {
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           (b_lines.words == nullptr || d_lines.words == nullptr);
  }

  // By all threads of the CTA.
  CUTLASS_DEVICE void make(Ordering const& by) {
    order_lines(by);
    count_tiles(by);
    sum_groups(by.grid.lines);
  }

  // By one thread: calls `take` with the pieces of one CTA.
  template <class Take>
  CUTLASS_DEVICE void deal(Ordering const& by, Take take) const {
    LineWork const work{by.grid.lines, live, whole, left_over, whole_work, single_work};
    auto const ctas = int32_t(gridDim.x);
    auto const cta = int32_t(blockIdx.x);
    int32_t const wholes = whole_count[kMaxGroups];
    int32_t const singles = count_left_over();
    Plan const plan = by.b_lines.words == nullptr
                          ? plan_of(work, wholes, singles, ctas, by.in_step)
                          : Plan{wholes + singles, 0};
    Records const records(wholes, singles, by.grid.slots_per_tile, ctas);
    int32_t const dealt = plan.shares == 0 ? records.count() : plan.dealt;
    for (int32_t wave = 0, index = cta; index < dealt; index = dealt_index(++wave, cta, ctas)) {
      Records::Part const part =
          plan.shares == 0 ? records.at(index) : Records::whole_part(index, by.grid.slots_per_tile);
      GroupPlace const at =
          part.is_single ? place_of_single(part.number)
                         : place_in_groups(part.number, by.grid.lines, whole, whole_count);
      take(piece_of(by, at.position, at.tile * by.grid.slots_per_tile + part.place, part.slots));
    }
    // The last CTAs get the first shares: a CTA waits for sums of CTAs that started before it.
    int32_t const share = ctas - 1 - cta;
    if (share < plan.shares) {
      Shares const shares{plan.dealt == 0 ? 0 : work.before(place_in_groups(
                                                    plan.dealt, by.grid.lines, whole, whole_count)),
                          plan.shares};
      shares.deal(work, share, [&](Run const& run) {
        Cut const& tile = run.tile;
        Piece piece =
            piece_of(by, tile.position,
                     (tile.is_single ? whole[tile.position] : tile.tile) * by.grid.slots_per_tile,
                     tile.is_single ? 1 : by.grid.slots_per_tile);
        piece.tile.k_tiles = run.k_tiles;
        piece.first_k = tile.k;
        piece.share = share;
        piece.others = run.others;
        take(piece);
      });
    }
  }

 private:
  // A line's position is the number of lines that come before it.
  CUTLASS_DEVICE void order_lines(Ordering const& by) {
    uint16_t* const by_line = whole;  // not used for anything else yet
    int32_t const lines = by.grid.lines;
    for (int32_t line = threadIdx.x; line < lines; line += blockDim.x) {
      by_line[line] =
          uint16_t(KTiles(by.a_lines.of(line * by.tile_m), nullptr, by.grid.k_tiles).count());
    }
    __syncthreads();
    for (int32_t line = threadIdx.x; line < lines; line += blockDim.x) {
      int32_t const own = by_line[line];
      int32_t position = line;
      if (by.a_lines.words != nullptr) {
        position = 0;
        for (int32_t other = 0; other < lines; ++other) {
          position += by_line[other] > own || (by_line[other] == own && other < line);
        }
      }
      order[position] = uint16_t(line);
      live[position] = uint16_t(own);
    }
    __syncthreads();
  }

  CUTLASS_DEVICE void count_tiles(Ordering const& by) {
    auto const position = int32_t(threadIdx.x);
    if (position < kMaxOwnLines) {
      int32_t live_slots = 0;
      if (position < by.grid.lines) {
        live_slots = by.d_lines.words == nullptr
                         ? by.grid.slots
                         : by.slots.count(by.d_lines.of(order[position] * by.tile_m), 0,
                                          by.grid.slots);
      }
      whole[position] = uint16_t(live_slots / by.grid.slots_per_tile);
      unsigned const odd = __ballot_sync(0xffffffffu, live_slots % by.grid.slots_per_tile != 0);
      if (position % 32 == 0) {
        left_over[position / 32] = odd;
      }
    }
    __syncthreads();
  }

  CUTLASS_DEVICE void sum_groups(int32_t lines) {
    auto const group = int32_t(threadIdx.x);
    if (group < kMaxGroups) {
      LineWork const work{lines, live, whole, left_over, whole_work, single_work};
      int32_t count = 0;
      int64_t of_wholes = 0;
      int64_t of_singles = 0;
      for (int32_t i = group * kLinesPerGroup; i < work.last_in(group); ++i) {
        count += whole[i];
        of_wholes += int64_t(whole[i]) * work.of_tile(false, i);
        of_singles += work.has_single(i) ? work.of_tile(true, i) : 0;
      }
      for (int offset = 1; offset < kMaxGroups; offset *= 2) {
        int32_t const lower_count = __shfl_up_sync(0xffffffffu, count, offset);
        int64_t const lower_wholes = __shfl_up_sync(0xffffffffu, of_wholes, offset);
        int64_t const lower_singles = __shfl_up_sync(0xffffffffu, of_singles, offset);
        count += group >= offset ? lower_count : 0;
        of_wholes += group >= offset ? lower_wholes : 0;
        of_singles += group >= offset ? lower_singles : 0;
      }
      int64_t const all_wholes = __shfl_sync(0xffffffffu, of_wholes, kMaxGroups - 1);
      whole_count[group + 1] = count;
      whole_work[group + 1] = of_wholes;
      single_work[group + 1] = all_wholes + of_singles;
      if (group == 0) {
        whole_count[0] = 0;
        whole_work[0] = 0;
        single_work[0] = all_wholes;
      }
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

  CUTLASS_DEVICE GroupPlace place_of_single(int32_t number) const {
    int32_t const position = SlotBits::of(1, 1).nth_live(left_over, number);
    return {position, whole[position]};
  }

  // All K tiles of the tile whose first slot has `rank` live ones before it in its line.
  CUTLASS_DEVICE Piece piece_of(Ordering const& by, int32_t position, int32_t rank,
                                int32_t slots) const {
    int32_t const line = order[position];
    auto slot_at = [&](int32_t live_rank) {
      return by.d_lines.words == nullptr
                 ? live_rank
                 : by.slots.nth_live(by.d_lines.of(line * by.tile_m), live_rank);
    };
    TileRecord record{line, {slot_at(rank), slots > 1 ? slot_at(rank + 1) : kNoSlot},
                      live[position]};
    if (by.b_lines.words != nullptr) {
      record.k_tiles = KTiles(by.a_lines.of(line * by.tile_m),
                              by.b_lines.of(record.slot[0] * by.slot_n), by.grid.k_tiles)
                           .count();
    }
    return {record};
  }
};

}  // namespace sparsedrop
