// Arrays scaled and rounded to 16 bits, several in one launch: the operands of a layer under
// autocast, and its bias where dropout scales that, too.

#include <algorithm>
#include <cstdint>

#include "elementwise/elements.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int kBatch = 4;  // vectors of a thread whose loads are under way together
constexpr int64_t kMaxCtas = 2048;

struct Params {
  Rounding arrays[kMaxRoundings];
};

template <class From, class Narrow>
__device__ void round_array(Rounding const& array) {
  auto* const to = static_cast<Narrow*>(array.to);
  auto const* const elements = static_cast<From const*>(array.from);
  auto const* const from = reinterpret_cast<Vector<From, kVector> const*>(elements);
  int64_t const vectors = array.count / kVector;
  int64_t const step = int64_t(gridDim.x) * kThreads * kBatch;
  for (int64_t first = int64_t(blockIdx.x) * kThreads * kBatch + threadIdx.x; first < vectors;
       first += step) {
    Vector<From, kVector> read[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      int64_t const i = first + b * kThreads;
      if (i < vectors) {
        read[b] = from[i];
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      int64_t const i = first + b * kThreads;
      Vector<Narrow, kVector> written;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        written.element[v] = rounded<Narrow>(array.factor * widened(read[b].element[v]));
      }
      if (i < vectors) {
        reinterpret_cast<Vector<Narrow, kVector>*>(to)[i] = written;
      }
    }
  }
  int64_t const last = vectors * kVector + threadIdx.x;
  if (blockIdx.x == 0 && last < array.count) {
    to[last] = rounded<Narrow>(array.factor * widened(elements[last]));
  }
}

template <class Narrow>
__global__ void __launch_bounds__(kThreads) round_kernel(Params const params) {
  Rounding const& array = params.arrays[blockIdx.y];
  if (array.from_dtype == DataType::fp32) {
    round_array<float, Narrow>(array);
  } else {
    round_array<Narrow, Narrow>(array);
  }
}

}  // namespace

cudaError_t round_to(DataType dtype, Rounding const* arrays, int count, cudaStream_t stream) {
  if (count < 0 || count > kMaxRoundings || (dtype != DataType::bf16 && dtype != DataType::fp16)) {
    return cudaErrorInvalidValue;
  }
  Params params{};
  int64_t most = 0;
  for (int i = 0; i < count; ++i) {
    bool const is_aligned = reinterpret_cast<uintptr_t>(arrays[i].from) % 16 == 0 &&
                            reinterpret_cast<uintptr_t>(arrays[i].to) % 8 == 0;
    bool const is_readable =
        arrays[i].from_dtype == DataType::fp32 || arrays[i].from_dtype == dtype;
    if (arrays[i].count < 0 || !is_aligned || !is_readable) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = arrays[i];
    most = std::max(most, arrays[i].count);
  }
  if (most == 0) {
    return cudaSuccess;
  }
  dim3 const grid(unsigned(std::min(ceil_div(most, kThreads * kVector * kBatch), kMaxCtas)),
                  unsigned(count));
  if (dtype == DataType::bf16) {
    round_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(params);
  } else {
    round_kernel<__half><<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace sparsedrop
