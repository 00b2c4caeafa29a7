// What lanes of a warp trade before they store, so that each has neighbours in memory.

#pragma once

#include "common/host_device.hpp"
#include "gemm/sm80/instructions.hpp"

namespace sparsedrop::sm80 {

constexpr unsigned kEveryLane = 0xffffffffu;

// Four lanes in a row have four words each: a matrix that is transposed. Lane t is left with word t
// of all four.
SPARSEDROP_DEVICE void transpose_in_quad(uint32_t (&words)[4]) {
  auto const lane = thread_id();
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) == 0) {
        bool const is_upper = (lane & bit) != 0;
        uint32_t const sent = is_upper ? words[i] : words[i | bit];
        uint32_t const got = __shfl_xor_sync(kEveryLane, sent, bit);
        words[i] = is_upper ? got : words[i];
        words[i | bit] = is_upper ? words[i | bit] : got;
      }
    }
  }
}

// Lanes whose rows are neighbours are so far apart.
constexpr int kLanesPerRow = 4;

SPARSEDROP_DEVICE bool has_odd_row() { return (thread_id() & kLanesPerRow) != 0; }

// Of two columns of a lane's row, and of the row beside it: the even row's lane gets the first
// column of both rows, the odd row's the second.
SPARSEDROP_DEVICE float2 transpose_in_pair(float2 row) {
  bool const is_odd = has_odd_row();
  float const got = __shfl_xor_sync(kEveryLane, is_odd ? row.x : row.y, kLanesPerRow);
  return is_odd ? make_float2(got, row.y) : make_float2(row.x, got);
}

}  // namespace sparsedrop::sm80
