// Tiles without a list: where D has no mask and there are few lines, each CTA orders the lines for
// itself, in less time than a launch that writes a list takes, and deals itself every ctas-th tile.

#pragma once

#include "gemm/config.hpp"

namespace sparsedrop {

// Lines that fit the shared memory which the stages leave.
constexpr int32_t kMaxOwnLines = 256;

struct OwnOrder {
  uint16_t live[kMaxOwnLines];   // K tiles of each line
  uint16_t order[kMaxOwnLines];  // lines, those with the most live K tiles first

  // By all threads of the CTA. A line's place is the number of lines that come before it.
  CUTLASS_DEVICE void make(Lines const& a_lines, FullGrid const& grid, int32_t tile_m) {
    for (int32_t line = threadIdx.x; line < grid.lines; line += blockDim.x) {
      live[line] = uint16_t(KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count());
    }
    __syncthreads();
    for (int32_t line = threadIdx.x; line < grid.lines; line += blockDim.x) {
      int32_t const own = live[line];
      int32_t place = 0;
      for (int32_t other = 0; other < grid.lines; ++other) {
        place += live[other] > own || (live[other] == own && other < line);
      }
      order[place] = uint16_t(line);
    }
    __syncthreads();
  }

  // Whether a product can do without a list.
  static bool suits(Lines const& d_lines, FullGrid const& grid) {
    return d_lines.words == nullptr && grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX;
  }
};

}  // namespace sparsedrop
