// What all 32 lanes of a warp find together: each calls a function with the same arguments and gets
// the same answer. A CTA's first tile waits for it, and one thread takes a microsecond longer.

#pragma once

#include "common/bits.hpp"
#include "schedule/grid.hpp"

namespace sparsedrop {

constexpr uint32_t kAllLanes = 0xffffffffu;

SPARSEDROP_DEVICE int32_t lane_id() { return int32_t(threadIdx.x % 32); }

// Lanes below the own one. It is read where it is used: registers are few there.
SPARSEDROP_DEVICE uint32_t lower_lanes() {
  uint32_t lanes;
  asm volatile("mov.u32 %0, %%lanemask_lt;" : "=r"(lanes));
  return lanes;
}

// The sum of the values of the lanes up to the own one.
SPARSEDROP_DEVICE int32_t inclusive_sum_in_warp(int32_t value) {
#pragma unroll 1
  for (int offset = 1; offset < 32; offset *= 2) {
    int32_t const lower = __shfl_up_sync(kAllLanes, value, offset);
    value += lane_id() >= offset ? lower : 0;
  }
  return value;
}

// The set bit of `word` that has `rank` set ones below it; there must be one.
SPARSEDROP_DEVICE int32_t nth_bit(uint32_t word, int32_t rank) {
  bool const is_it = (word >> lane_id() & 1u) != 0 && count_bits(word & lower_lanes()) == rank;
  return lowest_bit(__ballot_sync(kAllLanes, is_it));
}

// The same for up to 32 words.
SPARSEDROP_DEVICE int32_t nth_bit(uint32_t const* words, int32_t count, int32_t rank) {
  int32_t const lane = count_bits(lower_lanes());  // not kept in a register
  uint32_t const word = lane < count ? words[lane] : 0u;
  int32_t const own = count_bits(word);
  int32_t const through = inclusive_sum_in_warp(own);
  int32_t const owner = lowest_bit(__ballot_sync(kAllLanes, through > rank));
  rank -= __shfl_sync(kAllLanes, through - own, owner);
  return 32 * owner + nth_bit(__shfl_sync(kAllLanes, word, owner), rank);
}

// How many tiles each line of a group has, 16 bits each; 0 where there is no line.
using GroupCounts = uint4;
static_assert(1 << kMaxGroupShift == sizeof(GroupCounts) / sizeof(uint16_t));

// The sum of the counts, each as much as `most` at most, which is below 2^16.
SPARSEDROP_DEVICE int32_t sum_up_to(int32_t most, GroupCounts const& counts) {
  constexpr uint32_t kOnes = 0x0101u;  // one for each half of a word
  auto const bound = uint32_t(most) * 0x10001u;
  uint32_t sum = __dp2a_lo(__vminu2(counts.x, bound), kOnes, 0u);
  sum = __dp2a_lo(__vminu2(counts.y, bound), kOnes, sum);
  sum = __dp2a_lo(__vminu2(counts.z, bound), kOnes, sum);
  return int32_t(__dp2a_lo(__vminu2(counts.w, bound), kOnes, sum));
}

// The inverse of record_index for the groups' lines in order. Lane g's `group_start` sums the
// tiles of the groups before g; there are 32 groups at most.
SPARSEDROP_DEVICE Place place_in_groups(int32_t index, int32_t shift, GroupCounts const* groups,
                                        int32_t group_start) {
  int32_t const lane = lane_id();
  int32_t const group = count_bits(__ballot_sync(kAllLanes, group_start <= index)) - 1;
  int32_t const within = index - __shfl_sync(kAllLanes, group_start, group);
  GroupCounts const counts = groups[group];
  // Whole rounds before this record. Each lane counts the records of another number of them.
  int32_t rounds = 0;
  int32_t before = 0;
  for (int32_t least = 0;; least += 32) {
    int32_t const sum = sum_up_to(least + lane, counts);
    uint32_t const fitting = __ballot_sync(kAllLanes, sum <= within);
    if (fitting != 0) {
      int32_t const last = count_bits(fitting) - 1;
      rounds = least + last;
      before = __shfl_sync(kAllLanes, sum, last);
    }
    if (fitting != kAllLanes) {
      break;
    }
  }
  auto const* const of_lines = reinterpret_cast<uint16_t const*>(groups + group);
  bool const has_tile = lane < 1 << kMaxGroupShift && of_lines[lane] > rounds;
  return {(group << shift) + nth_bit(__ballot_sync(kAllLanes, has_tile), within - before), rounds};
}

}  // namespace sparsedrop
