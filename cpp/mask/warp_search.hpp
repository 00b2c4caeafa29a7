// What all 32 lanes of a warp find together: each calls it with the same arguments and gets the
// same answer. A CTA's first tile waits for it, and one thread takes a microsecond longer.

#pragma once

#include "mask/tile_order.hpp"

namespace sparsedrop {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline int32_t lane_id() { return int32_t(threadIdx.x % 32); }

// Of the lanes up to the own one, which have values of their own.
__device__ inline int32_t inclusive_sum_in_warp(int32_t value) {
#pragma unroll 1
  for (int offset = 1; offset < 32; offset *= 2) {
    int32_t const lower = __shfl_up_sync(kAllLanes, value, offset);
    value += lane_id() >= offset ? lower : 0;
  }
  return value;
}

// The set bit of `word` that has `rank` set ones below it; there must be one.
__device__ inline int32_t nth_bit(uint32_t word, int32_t rank) {
  uint32_t const own = 1u << lane_id();
  bool const is_it = (word & own) != 0 && count_bits(word & (own - 1u)) == rank;
  return lowest_bit(__ballot_sync(kAllLanes, is_it));
}

// The same of `words`, of whose bits those in `which` count.
__device__ inline int32_t nth_bit(uint32_t const* words, int32_t count, uint32_t which,
                                  int32_t rank) {
  int32_t const lane = lane_id();
  for (int32_t first = 0;; first += 32) {
    uint32_t const word = first + lane < count ? words[first + lane] & which : 0u;
    int32_t const own = count_bits(word);
    int32_t const through = inclusive_sum_in_warp(own);
    uint32_t const behind = __ballot_sync(kAllLanes, through > rank);
    if (behind != 0) {
      int32_t const owner = lowest_bit(behind);
      rank -= __shfl_sync(kAllLanes, through - own, owner);
      return 32 * (first + owner) + nth_bit(__shfl_sync(kAllLanes, word, owner), rank);
    }
    rank -= __shfl_sync(kAllLanes, through, 31);
  }
}

// The inverse of record_index. `tiles[position]` counts a line's tiles, and `group_start[g]` sums
// those of the groups before; there are 32 groups at most.
__device__ inline GroupPlace place_in_groups(int32_t index, int32_t lines, int32_t shift,
                                             uint16_t const* tiles, int32_t const* group_start) {
  int32_t const lane = lane_id();
  bool const is_group = lane << shift < lines;
  int32_t const group =
      count_bits(__ballot_sync(kAllLanes, is_group && group_start[lane] <= index)) - 1;
  int32_t const first = group << shift;
  int32_t const in_group = min(1 << shift, lines - first);
  // Whole rounds before this record. Each lane counts the records of another number of them.
  int32_t const within = index - group_start[group];
  int32_t rounds = 0;
  int32_t before = 0;
  for (int32_t least = 0;; least += 32) {
    int32_t sum = 0;
    for (int32_t i = 0; i < in_group; ++i) {
      sum += min(int32_t(tiles[first + i]), least + lane);
    }
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
  bool const has_tile = lane < in_group && tiles[first + lane] > rounds;
  return {first + nth_bit(__ballot_sync(kAllLanes, has_tile), within - before), rounds};
}

}  // namespace sparsedrop
