// Arrays of fp32 rounded to 16 bits, several in one launch: the operands of a layer under autocast.

#include <algorithm>
#include <cstdint>

#include "elementwise/elements.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int64_t kMaxCtas = 2048;

struct Params {
  Rounding arrays[kMaxRoundings];
};

template <class Narrow>
__global__ void __launch_bounds__(kThreads) round_kernel(Params const params) {
  Rounding const& array = params.arrays[blockIdx.y];
  auto* const to = static_cast<Narrow*>(array.to);
  int64_t const first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t const step = int64_t(gridDim.x) * kThreads;
  int64_t const vectors = array.count / kVector;
  for (int64_t i = first; i < vectors; i += step) {
    auto const read = reinterpret_cast<Vector<float, kVector> const*>(array.from)[i];
    Vector<Narrow, kVector> written;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      written.element[v] = rounded<Narrow>(read.element[v]);
    }
    reinterpret_cast<Vector<Narrow, kVector>*>(to)[i] = written;
  }
  for (int64_t i = vectors * kVector + first; i < array.count; i += step) {
    to[i] = rounded<Narrow>(array.from[i]);
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
    if (arrays[i].count < 0 || !is_aligned) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = arrays[i];
    most = std::max(most, arrays[i].count);
  }
  if (most == 0) {
    return cudaSuccess;
  }
  dim3 const grid(unsigned(std::min(ceil_div(most, kThreads * kVector), kMaxCtas)),
                  unsigned(count));
  if (dtype == DataType::bf16) {
    round_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(params);
  } else {
    round_kernel<__half><<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace sparsedrop
