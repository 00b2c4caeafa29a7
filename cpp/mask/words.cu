// A grid of booleans -> bit words in both orientations.

#include "mask/bits.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerCta = 8;

struct WordsOf {
  uint32_t* words;         // [lines, words_per_line]
  int64_t lines;           // block rows, or block columns
  int64_t words_per_line;  // bits run along the other extent
  int64_t units;           // mask units along a line
  int64_t units_per_block;
  int64_t line_stride;   // distance in `live` between neighbouring lines
  int64_t block_stride;  // distance in `live` between neighbouring blocks of a line
};

// One warp makes one word: each lane looks up the block that its bit belongs to.
__device__ void make_word(uint8_t const* live, WordsOf const& to, int64_t index, int lane) {
  int64_t const line = index / to.words_per_line;
  int64_t const unit = index % to.words_per_line * kWarp + lane;
  bool is_live = false;
  if (unit < to.units) {
    int64_t const block = unit / to.units_per_block;
    is_live = live[line * to.line_stride + block * to.block_stride] != 0;
  }
  uint32_t const word = __ballot_sync(0xffffffffu, is_live);
  if (lane == 0) {
    to.words[index] = word;
  }
}

__global__ void mask_words_kernel(uint8_t const* live, WordsOf rows, WordsOf cols) {
  int const lane = threadIdx.x % kWarp;
  int64_t const first = int64_t(blockIdx.x) * kWarpsPerCta + threadIdx.x / kWarp;
  int64_t const step = int64_t(gridDim.x) * kWarpsPerCta;
  int64_t const row_words = rows.lines * rows.words_per_line;
  int64_t const all_words = row_words + cols.lines * cols.words_per_line;
  for (int64_t i = first; i < all_words; i += step) {
    if (i < row_words) {
      make_word(live, rows, i, lane);
    } else {
      make_word(live, cols, i - row_words, lane);
    }
  }
}

}  // namespace

cudaError_t mask_words(uint8_t const* live, int64_t rows, int64_t cols, int32_t block_rows,
                       int32_t block_cols, uint32_t* row_words, uint32_t* col_words,
                       cudaStream_t stream) {
  if (block_rows <= 0 || block_cols <= 0 || block_rows % kMaskUnit != 0 ||
      block_cols % kMaskUnit != 0) {
    return cudaErrorInvalidValue;
  }
  int64_t const grid_rows = ceil_div(rows, block_rows);
  int64_t const grid_cols = ceil_div(cols, block_cols);
  WordsOf const by_row{row_words,
                       grid_rows,
                       mask_line_words(cols),
                       ceil_div(cols, kMaskUnit),
                       block_cols / kMaskUnit,
                       grid_cols,
                       1};
  WordsOf const by_col{col_words,
                       grid_cols,
                       mask_line_words(rows),
                       ceil_div(rows, kMaskUnit),
                       block_rows / kMaskUnit,
                       1,
                       grid_cols};
  int64_t const words = by_row.lines * by_row.words_per_line + by_col.lines * by_col.words_per_line;
  if (words == 0) {
    return cudaSuccess;
  }
  // A few thousand CTAs fill any GPU; larger grids of blocks loop.
  auto const ctas =
      unsigned(ceil_div(words, kWarpsPerCta) < 4096 ? ceil_div(words, kWarpsPerCta) : 4096);
  mask_words_kernel<<<ctas, kWarp * kWarpsPerCta, 0, stream>>>(live, by_row, by_col);
  return cudaGetLastError();
}

}  // namespace sparsedrop
