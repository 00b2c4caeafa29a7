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
constexpr int kVectorsAhead = 8;         // of a thread: 32 KB a CTA are under way
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

// A CTA's share of the live units of rows: every kCtas-th. All threads of a warp go on together.
class OwnUnits {
 public:
  static constexpr int32_t kNone = -1;

  __device__ OwnUnits(uint32_t const* line, int64_t rows, uint32_t rank)
      : line_(line), units_(int32_t(ceil_div(rows, kMaskUnit))), rank_(rank) {}

  __device__ int32_t next() {
    while (own_ == 0) {
      if (++word_ >= int32_t(ceil_div(units_, 32))) {
        return kNone;
      }
      uint32_t const live =
          tiles_in_word(units_, word_) & (line_ == nullptr ? 0xffffffffu : line_[word_]);
      uint32_t const bit = 1u << threadIdx.x % 32;  // each lane asks for one
      bool const is_own =
          (live & bit) != 0 && (passed_ + count_bits(live & (bit - 1))) % kCtas == rank_;
      own_ = __ballot_sync(0xffffffffu, is_own);
      passed_ += count_bits(live);
    }
    int32_t const unit = 32 * word_ + lowest_bit(own_);
    own_ &= own_ - 1;
    return unit;
  }

 private:
  uint32_t const* line_;
  int32_t units_;
  uint32_t rank_;
  int32_t word_ = -1;
  uint32_t own_ = 0;     // units of the word that are still to come
  uint32_t passed_ = 0;  // live ones up to the end of the word
};

// Source has, for vectors of one row:
//   Element, kMatrices
//   vector(matrix, row, col)      the address of one
//   take(read, row, col, values)  what is summed, of the vectors that were read
template <class Source>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads)
    sum_columns(Source const source, Columns const columns) {
  using Element = typename Source::Element;
  constexpr int kStages = kVectorsAhead / (Source::kMatrices * kRowsPerThread);
  auto const cluster = cooperative_groups::this_cluster();
  uint32_t const rank = cluster.block_rank();
  int64_t const first_col = int64_t(blockIdx.y) * kStripe;
  int const across = threadIdx.x % kThreadsAcross;
  int const down = threadIdx.x / kThreadsAcross;
  int64_t const col = first_col + across * kVector;
  int64_t const rows = col < columns.cols ? columns.rows : 0;  // that this thread has

  // A round loads a unit and sums the one that was loaded kStages rounds before; each thread its
  // own vectors.
  __shared__ uint4 loaded[kStages][Source::kMatrices][kRowsPerThread][kThreads];
  constexpr int32_t kNotYet = -2;
  int32_t under_way[kStages];
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    under_way[i] = kNotYet;
  }
  OwnUnits units(columns.by_col.of(int32_t(first_col)), columns.rows, rank);
  float sums[kVector] = {};
#pragma unroll 1
  for (int stage = 0; under_way[0] != OwnUnits::kNone; stage = (stage + 1) % kStages) {
    __pipeline_wait_prior(kStages - 1);
    if (under_way[0] != kNotYet) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        int64_t const row = int64_t(under_way[0]) * kMaskUnit + i * kThreadsDown + down;
        if (row < rows) {
          uint4 read[Source::kMatrices];
#pragma unroll
          for (int matrix = 0; matrix < Source::kMatrices; ++matrix) {
            read[matrix] = loaded[stage][matrix][i][threadIdx.x];
          }
          float values[kVector];
          source.take(read, row, col, values);
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            sums[v] += values[v];
          }
        }
      }
    }
#pragma unroll
    for (int i = 1; i < kStages; ++i) {
      under_way[i - 1] = under_way[i];
    }
    int32_t const unit = units.next();
    under_way[kStages - 1] = unit;
    if (unit != OwnUnits::kNone) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        int64_t const row = int64_t(unit) * kMaskUnit + i * kThreadsDown + down;
#pragma unroll
        for (int matrix = 0; matrix < Source::kMatrices; ++matrix) {
          if (row < rows) {
            __pipeline_memcpy_async(&loaded[stage][matrix][i][threadIdx.x],
                                    source.vector(matrix, row, col), sizeof(uint4));
          }
        }
      }
    }
    __pipeline_commit();
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
