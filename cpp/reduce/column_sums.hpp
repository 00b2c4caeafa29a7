// Sums of the columns of a masked matrix, in kernels with clusters and without.

#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline.h>

#include <cstdint>

#include "common/bits.hpp"
#include "common/host_device.hpp"
#include "elementwise/elements.hpp"
#include "mask/lines.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop::column_sum {

namespace cg = cooperative_groups;

// The rows of a stripe of columns, at most one mask unit wide, are summed in shares, which take its
// units of rows in turn; then the shares' sums are added up, in one order, so that the sum is
// repeatable. A cluster has a CTA for each share; where a GPU has no clusters, one CTA sums them
// all.
constexpr int kVector = 8;  // elements of 16 bytes
constexpr int kStripe = kMaskUnit;
constexpr int kNarrowStripe = 16;  // of elements, where whole stripes would be few CTAs
constexpr int64_t kNarrowColumns = 1024;
constexpr int kThreadsAcross = kStripe / kVector;
constexpr int kThreadsDown = 32;
constexpr int kThreads = kThreadsAcross * kThreadsDown;
constexpr int kRowsPerThread = kMaskUnit / kThreadsDown;
constexpr int kShares = 8;
constexpr int kBatch = 32 / kShares;  // units of a mask word that are in one share

struct Arguments {
  void const* data;
  int64_t rows;
  int64_t cols;
  int64_t ld;
  MaskLines by_col;  // bits along the rows
  int32_t stripe;    // columns of a CTA: by stripe_of
  void* out;
  bool accumulates;  // to what `out` holds
  double factor;
};

constexpr int32_t stripe_of(int64_t cols, bool has_vectors) {
  return !has_vectors && cols <= kNarrowColumns ? kNarrowStripe : kStripe;
}

template <class Element>
using Found = Accumulator<Element>[kStripe];

// By a CTA: sums of the stripe that starts at `first_col`, over one share of its rows. Of 16 bits,
// where every row is whole vectors.
template <class Element>
__device__ void sum_share_of_vectors(Arguments const& args, int64_t first_col, int32_t share,
                                     Found<Element>& found) {
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
    uint32_t live = bits_in_word(units, word) & (line == nullptr ? 0xffffffffu : line[word]);
    live = has_col ? live >> share : 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        int64_t const row =
            int64_t(32 * word + b * kShares + share) * kMaskUnit + i * kThreadsDown + down;
        bool const is_read = ((live >> (b * kShares)) & 1u) != 0 && row < args.rows;
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
          sums[v] += widened(values[v]);
        }
      }
    }
  }

  __shared__ float partial[kThreadsDown][kStripe];
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
}

// The same of any type and extents, element by element.
template <class Element, int kAcross>
__device__ void sum_share_of_elements(Arguments const& args, int64_t first_col, int32_t share,
                                      Found<Element>& found) {
  constexpr int kDown = kThreads / kAcross;
  constexpr int kLoads = 16;  // of a thread, under way together
  int const across = threadIdx.x % kAcross;
  int const down = threadIdx.x / kAcross;
  int64_t const col = first_col + across;
  auto const* const base = static_cast<Element const*>(args.data) + col;
  uint32_t const* const line = args.by_col.of(int32_t(first_col));
  Accumulator<Element> sum = 0;
  constexpr int64_t kRows = kDown * kLoads;
  static_assert(kRows % kMaskUnit == 0, "loads that are under way together are of whole units");
  for (int64_t top = share * kRows; top < args.rows && col < args.cols; top += kShares * kRows) {
    Accumulator<Element> read[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      int64_t const row = top + i * kDown + down;
      int64_t const unit = row / kMaskUnit;
      bool const is_live =
          row < args.rows && (line == nullptr || (line[unit / 32] >> (unit % 32) & 1u) != 0);
      read[i] = is_live ? widened(base[row * args.ld]) : 0;
    }
    // In pairs, and pairs of pairs: long sums then lose no more than torch's.
#pragma unroll
    for (int half = kLoads / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) {
        read[i] += read[i + half];
      }
    }
    sum += read[0];
  }
  __shared__ Accumulator<Element> partial[kDown][kAcross];
  partial[down][across] = sum;
  __syncthreads();
  if (down == 0) {
#pragma unroll
    for (int i = 1; i < kDown; ++i) {
      sum += partial[i][across];
    }
    found[across] = sum;
  }
  __syncthreads();
}

template <class Element, bool kVectors>
__device__ void sum_share(Arguments const& args, int64_t first_col, int32_t share,
                          Found<Element>& found) {
  if constexpr (kVectors) {
    sum_share_of_vectors<Element>(args, first_col, share, found);
  } else {
    if (args.stripe == kNarrowStripe) {
      sum_share_of_elements<Element, kNarrowStripe>(args, first_col, share, found);
    } else {
      sum_share_of_elements<Element, kStripe>(args, first_col, share, found);
    }
  }
}

// Adds up what the shares have found, if the thread has a column; `of(share)` is a share's sums.
template <class Out, class Of>
__device__ void add_shares(Arguments const& args, int64_t first_col, Of const& of) {
  int const own = threadIdx.x;
  if (own < args.stripe && first_col + own < args.cols) {
    Accumulator<Out> sum = 0;
#pragma unroll
    for (int share = 0; share < kShares; ++share) {
      sum += of(share)[own];
    }
    sum *= Accumulator<Out>(args.factor);
    Out* const at = static_cast<Out*>(args.out) + first_col + own;
    *at = rounded<Out>(args.accumulates ? widened(*at) + sum : sum);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SPARSEDROP_HAS_CLUSTERS 0
#else
#define SPARSEDROP_HAS_CLUSTERS 1
#endif

// CTA x of a row of the grid is that of share x in its cluster.
template <class Element, class Out, bool kVectors>
__global__ void __launch_bounds__(kThreads) cluster_kernel(Arguments const args) {
#if SPARSEDROP_HAS_CLUSTERS
  cg::cluster_group const cluster = cg::this_cluster();
  auto const share = int32_t(cluster.block_rank());
  int64_t const first_col = int64_t(blockIdx.y) * args.stripe;
  __shared__ Found<Element> found;
  sum_share<Element, kVectors>(args, first_col, share, found);
  cluster.sync();
  if (share == 0) {
    add_shares<Out>(args, first_col,
                    [&](int other) { return cluster.map_shared_rank(found, other); });
  }
  cluster.sync();  // a CTA's shared memory may not go away under a CTA that reads it
#else
  __trap();  // column_sums() does not launch it
#endif
}

template <class Element, class Out, bool kVectors>
__global__ void __launch_bounds__(kThreads) single_kernel(Arguments const args) {
  int64_t const first_col = int64_t(blockIdx.y) * args.stripe;
  __shared__ Found<Element> found[kShares];
  for (int32_t share = 0; share < kShares; ++share) {
    sum_share<Element, kVectors>(args, first_col, share, found[share]);
    __syncthreads();
  }
  add_shares<Out>(args, first_col, [&](int share) { return found[share]; });
}

}  // namespace sparsedrop::column_sum
