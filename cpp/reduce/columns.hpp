// One pass over the live blocks of [rows, cols] matrices that sums up columns. What is summed is
// read from the matrices, or made of them and stored on the way.

#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "mask/bits.hpp"
#include "mask/lines.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// A cluster of CTAs sums a stripe of columns, one mask unit wide. They take its live units of rows
// in turn, and the first adds up what all have found: in one order, so that the sum is repeatable.
constexpr int kVector = 8;  // elements of 16 bytes
constexpr int kStripe = kMaskUnit;
constexpr int kThreadsAcross = kStripe / kVector;
constexpr int kThreadsDown = 32;
constexpr int kThreads = kThreadsAcross * kThreadsDown;
constexpr int kRowsPerThread = kMaskUnit / kThreadsDown;
constexpr int kCtas = 8;
constexpr int kVectorsAhead = 8;         // that a thread has under way: 32 KB a CTA
constexpr int64_t kMostStripes = 65535;  // of a grid's second extent

__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline void store(float value, __nv_bfloat16* at) { *at = __float2bfloat16(value); }
__device__ inline void store(float value, __half* at) { *at = __float2half(value); }

// Extents, the mask's lines with their bits along the rows, and where the sums go, or null.
struct Columns {
  int64_t rows;
  int64_t cols;
  Lines by_col;
  void* sums;
};

// The rows of one thread: some of every kCtas-th live unit.
class OwnRows {
 public:
  static constexpr int64_t kNone = -1;

  __device__ OwnRows(uint32_t const* line, int64_t rows, int32_t rank, int32_t first)
      : line_(line), units_(int32_t(ceil_div(rows, kMaskUnit))), skip_(rank), first_(first) {}

  // The next one, which may lie behind the last of a ragged matrix.
  __device__ int64_t next() {
    if (part_ == kRowsPerThread) {
      unit_ = next_unit();
      part_ = 0;
    }
    return unit_ < 0 ? kNone : int64_t(unit_) * kMaskUnit + part_++ * kThreadsDown + first_;
  }

 private:
  __device__ int32_t next_unit() {
    for (int32_t count = __popc(live_); skip_ >= count; count = __popc(live_)) {
      skip_ -= count;
      if (32 * int64_t(++word_) >= units_) {
        return -1;
      }
      live_ = tiles_in_word(units_, word_) & (line_ == nullptr ? 0xffffffffu : line_[word_]);
    }
    for (; skip_ > 0; --skip_) {
      live_ &= live_ - 1;
    }
    int32_t const unit = 32 * word_ + lowest_bit(live_);
    live_ &= live_ - 1;
    skip_ = kCtas - 1;
    return unit;
  }

  uint32_t const* line_;
  int32_t units_;
  int32_t skip_;  // live units that others take, before the next own one
  int32_t first_;
  int32_t word_ = -1;
  uint32_t live_ = 0;  // units of the word that were not passed yet
  int32_t unit_ = 0;
  int32_t part_ = kRowsPerThread;
};

// Source has, for vectors of one row:
//   Element, kMatrices
//   vector(matrix, row, col)      the address of one
//   take(read, row, col, values)  what is summed, of the vectors that were read
template <class Source>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads)
    sum_columns(Source const source, Columns const columns) {
  using Element = typename Source::Element;
  constexpr int kStages = kVectorsAhead / Source::kMatrices;
  auto const cluster = cooperative_groups::this_cluster();
  auto const rank = int32_t(cluster.block_rank());
  int64_t const first_col = int64_t(blockIdx.y) * kStripe;
  int const across = threadIdx.x % kThreadsAcross;
  int const down = threadIdx.x / kThreadsAcross;
  int64_t const col = first_col + across * kVector;
  int64_t const rows = col < columns.cols ? columns.rows : 0;  // that this thread has

  // Each thread reads what it has loaded itself.
  __shared__ uint4 loaded[kStages][Source::kMatrices][kThreads];
  OwnRows now(columns.by_col.of(int32_t(first_col)), columns.rows, rank, down);
  OwnRows ahead = now;
  auto load_next = [&](int stage) {
    int64_t const row = ahead.next();
    if (row != OwnRows::kNone && row < rows) {
#pragma unroll
      for (int matrix = 0; matrix < Source::kMatrices; ++matrix) {
        __pipeline_memcpy_async(&loaded[stage][matrix][threadIdx.x],
                                source.vector(matrix, row, col), sizeof(uint4));
      }
    }
    __pipeline_commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    load_next(stage);
  }
  float sums[kVector] = {};
  int stage = 0;
  for (int64_t row = now.next(); row != OwnRows::kNone; row = now.next()) {
    __pipeline_wait_prior(kStages - 1);
    if (row < rows) {
      uint4 read[Source::kMatrices];
#pragma unroll
      for (int matrix = 0; matrix < Source::kMatrices; ++matrix) {
        read[matrix] = loaded[stage][matrix][threadIdx.x];
      }
      float values[kVector];
      source.take(read, row, col, values);
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        sums[v] += values[v];
      }
    }
    load_next(stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  if (columns.sums == nullptr) {
    return;
  }

  __shared__ float partial[kThreadsDown][kStripe];
  __shared__ float found[kStripe];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    partial[down][across * kVector + v] = sums[v];
  }
  __syncthreads();
  int const own = threadIdx.x;
  if (own < kStripe) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreadsDown; ++i) {
      sum += partial[i][own];
    }
    found[own] = sum;
  }
  cluster.sync();
  if (rank == 0 && own < kStripe && first_col + own < columns.cols) {
    float sum = 0.0f;
#pragma unroll
    for (int cta = 0; cta < kCtas; ++cta) {
      sum += cluster.map_shared_rank(found, cta)[own];
    }
    store(sum, static_cast<Element*>(columns.sums) + first_col + own);
  }
  cluster.sync();  // a CTA's shared memory may not go away under who reads it
}

// Whether vectors can be read of, or written to, a matrix.
inline bool has_vectors(Matrix const& matrix) {
  return matrix.data != nullptr && reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
         matrix.order == Order::row_major && matrix.ld % kVector == 0;
}

// Launches sum_columns() where extents and mask allow it.
template <class Source>
cudaError_t launch_columns(Source const& source, int64_t rows, int64_t cols, Mask const& mask,
                           void* sums, cudaStream_t stream) {
  bool const has_mask = mask.row_words != nullptr;
  bool const fits = !has_mask || (mask.col_words != nullptr && mask.block_cols > 0 &&
                                  mask.block_cols % kStripe == 0 && mask.block_rows > 0 &&
                                  mask.block_rows % kMaskUnit == 0);
  int64_t const stripes = ceil_div(cols, kStripe);
  if (!fits || rows < 1 || cols < 1 || cols % kVector != 0 || stripes > kMostStripes) {
    return cudaErrorInvalidValue;
  }
  Lines by_col{};
  if (has_mask) {
    by_col = {mask.col_words, mask_line_words(rows), mask.block_cols};
  }
  sum_columns<<<dim3(kCtas, unsigned(stripes)), kThreads, 0, stream>>>(
      source, Columns{rows, cols, by_col, sums});
  return cudaGetLastError();
}

}  // namespace sparsedrop
