// Bits of the words that masks are made of, on the host and in kernels.

#pragma once

#include <cstdint>

#include "common/host_device.hpp"

namespace sparsedrop {

// Bits of a word that stand for one of the first `count` bits of a line, in its word `index`.
SPARSEDROP_HOST_DEVICE uint32_t bits_in_word(int32_t count, int32_t index) {
  int32_t const left = count - 32 * index;
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

}  // namespace sparsedrop
