// A grid of booleans, given or drawn here -> bit words in both orientations.

#include "common/host_device.hpp"
#include "mask/drawn_blocks.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kWarpsPerCta = 8;

struct WordsOf {
  uint32_t* words;         // [lines, words_per_line]
  int64_t lines;           // block rows, or block columns
  int64_t words_per_line;  // bits run along the other extent
  int64_t units;           // mask units along a line
  int64_t units_per_block;
  int64_t line_stride;   // distance in the grid between neighbouring lines
  int64_t block_stride;  // distance in the grid between neighbouring blocks of a line
};

// What a block is, by its index in the row-major grid. `by_rows`: asked for the words of the block
// rows, where `starts_block` is true once for each block.

struct GivenBlocks {
  uint8_t const* live;

  __device__ bool is_live(int64_t block, bool, bool) const { return live[block] != 0; }
};

// Both orientations draw the same, each for itself; the grid is written along with the rows.
struct WrittenBlocks {
  DrawnBlocks drawn;
  uint8_t* live;

  __device__ bool is_live(int64_t block, bool by_rows, bool starts_block) const {
    bool const is_live = drawn.is_live(block);
    if (by_rows && starts_block) {
      live[block] = is_live;
    }
    return is_live;
  }
};

// One warp makes one word: each lane looks up the block that its bit belongs to.
template <class Blocks>
__device__ void make_word(Blocks const& blocks, WordsOf const& to, int64_t index, bool by_rows) {
  int const lane = threadIdx.x % kWarp;
  int64_t const line = index / to.words_per_line;
  int64_t const unit = index % to.words_per_line * kWarp + lane;
  bool is_live = false;
  if (unit < to.units) {
    int64_t const block = unit / to.units_per_block;
    is_live = blocks.is_live(line * to.line_stride + block * to.block_stride, by_rows,
                             block * to.units_per_block == unit);
  }
  uint32_t const word = __ballot_sync(0xffffffffu, is_live);
  if (lane == 0) {
    to.words[index] = word;
  }
}

template <class Blocks>
__global__ void words_kernel(Blocks blocks, WordsOf rows, WordsOf cols) {
  int64_t const first = int64_t(blockIdx.x) * kWarpsPerCta + threadIdx.x / kWarp;
  int64_t const step = int64_t(gridDim.x) * kWarpsPerCta;
  int64_t const row_words = rows.lines * rows.words_per_line;
  int64_t const all_words = row_words + cols.lines * cols.words_per_line;
  for (int64_t i = first; i < all_words; i += step) {
    if (i < row_words) {
      make_word(blocks, rows, i, true);
    } else {
      make_word(blocks, cols, i - row_words, false);
    }
  }
}

// The grid alone: a thread a block.
__global__ void grid_kernel(WrittenBlocks blocks, int64_t count) {
  int64_t const step = int64_t(gridDim.x) * kWarp * kWarpsPerCta;
  for (int64_t i = int64_t(blockIdx.x) * kWarp * kWarpsPerCta + threadIdx.x; i < count; i += step) {
    blocks.is_live(i, true, true);
  }
}

// A few thousand CTAs fill any GPU; larger grids of blocks loop.
unsigned ctas_for(int64_t items, int64_t per_cta) {
  return unsigned(ceil_div(items, per_cta) < 4096 ? ceil_div(items, per_cta) : 4096);
}

cudaError_t launch_grid(WrittenBlocks const& blocks, Blocking const& of, cudaStream_t stream) {
  if (of.block_rows <= 0 || of.block_cols <= 0) {
    return cudaErrorInvalidValue;
  }
  int64_t const count = ceil_div(of.rows, of.block_rows) * ceil_div(of.cols, of.block_cols);
  if (count == 0) {
    return cudaSuccess;
  }
  constexpr int kThreads = kWarp * kWarpsPerCta;
  grid_kernel<<<ctas_for(count, kThreads), kThreads, 0, stream>>>(blocks, count);
  return cudaGetLastError();
}

template <class Blocks>
cudaError_t launch(Blocks const& blocks, Blocking const& of, uint32_t* row_words,
                   uint32_t* col_words, cudaStream_t stream) {
  if (of.block_rows <= 0 || of.block_cols <= 0 || of.block_rows % kMaskUnit != 0 ||
      of.block_cols % kMaskUnit != 0) {
    return cudaErrorInvalidValue;
  }
  int64_t const grid_rows = ceil_div(of.rows, of.block_rows);
  int64_t const grid_cols = ceil_div(of.cols, of.block_cols);
  WordsOf const by_row{row_words,
                       grid_rows,
                       mask_line_words(of.cols),
                       ceil_div(of.cols, kMaskUnit),
                       of.block_cols / kMaskUnit,
                       grid_cols,
                       1};
  WordsOf const by_col{col_words,
                       grid_cols,
                       mask_line_words(of.rows),
                       ceil_div(of.rows, kMaskUnit),
                       of.block_rows / kMaskUnit,
                       1,
                       grid_cols};
  int64_t const words = by_row.lines * by_row.words_per_line + by_col.lines * by_col.words_per_line;
  if (words == 0) {
    return cudaSuccess;
  }
  words_kernel<<<ctas_for(words, kWarpsPerCta), kWarp * kWarpsPerCta, 0, stream>>>(blocks, by_row,
                                                                                   by_col);
  return cudaGetLastError();
}

}  // namespace

cudaError_t mask_words(uint8_t const* live, Blocking const& blocking, uint32_t* row_words,
                       uint32_t* col_words, cudaStream_t stream) {
  return launch(GivenBlocks{live}, blocking, row_words, col_words, stream);
}

cudaError_t bernoulli_mask(BernoulliDraw const& draw, Blocking const& blocking, uint8_t* live,
                           uint32_t* row_words, uint32_t* col_words, cudaStream_t stream) {
  if (!is_legal(draw)) {
    return cudaErrorInvalidValue;
  }
  WrittenBlocks const blocks{drawn_blocks(draw), live};
  return row_words == nullptr && col_words == nullptr
             ? launch_grid(blocks, blocking, stream)
             : launch(blocks, blocking, row_words, col_words, stream);
}

}  // namespace sparsedrop
