// Bits of the words that masks are made of, on the host and in kernels.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPARSEDROP_HOST_DEVICE __host__ __device__ __forceinline__
#define SPARSEDROP_DEVICE __device__ __forceinline__
#else
#define SPARSEDROP_HOST_DEVICE inline
#endif

namespace sparsedrop {

// Bits of a line's word `index` that stand for one of the `k_tiles` tiles of the problem.
SPARSEDROP_HOST_DEVICE uint32_t tiles_in_word(int32_t k_tiles, int32_t index) {
  int32_t const left = k_tiles - 32 * index;
  return left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
}

SPARSEDROP_HOST_DEVICE int32_t lowest_bit(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __ffs(int32_t(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}

SPARSEDROP_HOST_DEVICE int32_t count_bits(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

SPARSEDROP_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sparsedrop
