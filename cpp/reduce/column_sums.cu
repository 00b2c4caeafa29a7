// Sums of the columns of a masked matrix: the gradient of a bias.

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "common/bits.hpp"
#include "mask/lines.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

namespace cg = cooperative_groups;

// A cluster of CTAs sums a stripe of columns, one mask unit wide. They take its units of rows in
// turn, and the first adds up what all have found: in one order, so that the sum is repeatable.
constexpr int kVector = 8;  // elements of 16 bytes
constexpr int kStripe = kMaskUnit;
constexpr int kThreadsAcross = kStripe / kVector;
constexpr int kThreadsDown = 32;
constexpr int kThreads = kThreadsAcross * kThreadsDown;
constexpr int kRowsPerThread = kMaskUnit / kThreadsDown;
constexpr int kCtas = 8;
constexpr int kBatch = 32 / kCtas;       // units of a mask word that are a CTA's
constexpr int64_t kMostStripes = 65535;  // of a grid's second extent

__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ void store(float value, __nv_bfloat16* at) { *at = __float2bfloat16(value); }
__device__ void store(float value, __half* at) { *at = __float2half(value); }

struct Arguments {
  void const* data;
  int64_t rows;
  int64_t cols;
  int64_t ld;
  Lines by_col;  // bits along the rows
  void* out;
};

template <class Element>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads)
    column_sums_kernel(Arguments const args) {
  cg::cluster_group const cluster = cg::this_cluster();
  auto const rank = int32_t(cluster.block_rank());
  int64_t const first_col = int64_t(blockIdx.y) * kStripe;
  int const across = threadIdx.x % kThreadsAcross;
  int const down = threadIdx.x / kThreadsAcross;
  int64_t const col = first_col + across * kVector;
  auto const* const base = static_cast<Element const*>(args.data) + col;
  uint32_t const* const line = args.by_col.of(int32_t(first_col));
  bool const has_col = col < args.cols;

  // A word's units are all under way before the first is summed up, each thread's in places of its
  // own: through shared memory, since the compiler would load into registers one at a time.
  __shared__ uint4 loaded[kBatch][kRowsPerThread][kThreads];
  float sums[kVector] = {};
  auto const units = int32_t(ceil_div(args.rows, kMaskUnit));
  for (int32_t word = 0; 32 * word < units; ++word) {
    uint32_t live = tiles_in_word(units, word) & (line == nullptr ? 0xffffffffu : line[word]);
    live = has_col ? live >> rank : 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        int64_t const row =
            int64_t(32 * word + b * kCtas + rank) * kMaskUnit + i * kThreadsDown + down;
        bool const is_read = ((live >> (b * kCtas)) & 1u) != 0 && row < args.rows;
        // What is not read is filled with zeros.
        __pipeline_memcpy_async(&loaded[b][i][threadIdx.x], is_read ? base + row * args.ld : base,
                                sizeof(uint4), is_read ? 0 : sizeof(uint4));
      }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        uint4 const vector = loaded[b][i][threadIdx.x];
        auto const* const values = reinterpret_cast<Element const*>(&vector);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          sums[v] += to_float(values[v]);
        }
      }
    }
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
  if (rank == 0 && own < kStripe && first_col + own < args.cols) {
    float sum = 0.0f;
#pragma unroll
    for (int cta = 0; cta < kCtas; ++cta) {
      sum += cluster.map_shared_rank(found, cta)[own];
    }
    store(sum, static_cast<Element*>(args.out) + first_col + own);
  }
  cluster.sync();  // a CTA's shared memory may not go away under who reads it
}

}  // namespace

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, void* out, cudaStream_t stream) {
  bool const is_readable = matrix.data != nullptr && out != nullptr &&
                           reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
                           matrix.order == Order::row_major && matrix.ld % kVector == 0 &&
                           cols % kVector == 0;
  bool const has_mask = mask.row_words != nullptr;
  bool const fits = !has_mask || (mask.col_words != nullptr && mask.block_cols > 0 &&
                                  mask.block_cols % kStripe == 0 && mask.block_rows > 0 &&
                                  mask.block_rows % kMaskUnit == 0);
  int64_t const stripes = ceil_div(cols, kStripe);
  if (!is_readable || !fits || rows < 1 || cols < 1 || stripes > kMostStripes) {
    return cudaErrorInvalidValue;
  }
  Lines by_col{};
  if (has_mask) {
    by_col = {mask.col_words, mask_line_words(rows), mask.block_cols};
  }
  Arguments const args{matrix.data, rows, cols, matrix.ld, by_col, out};
  dim3 const grid(kCtas, unsigned(stripes));
  switch (dtype) {
    case DataType::bf16:
      column_sums_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(args);
      return cudaGetLastError();
    case DataType::fp16:
      column_sums_kernel<__half><<<grid, kThreads, 0, stream>>>(args);
      return cudaGetLastError();
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
