// The live K tiles of one output tile: the bits set in both operands' lines.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPARSEDROP_HOST_DEVICE __host__ __device__ __forceinline__
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

// A null line is all live. `next` may be called once for each live tile, not more often.
class KTiles {
 public:
  SPARSEDROP_HOST_DEVICE KTiles(uint32_t const* a_line, uint32_t const* b_line, int32_t k_tiles)
      : a_(a_line), b_(b_line), k_tiles_(k_tiles) {}

  SPARSEDROP_HOST_DEVICE int32_t next() {
    while (word_ == 0) {
      ++index_;
      word_ = load(index_);
    }
    int32_t const bit = lowest_bit(word_);
    word_ &= word_ - 1;
    return 32 * index_ + bit;
  }

  SPARSEDROP_HOST_DEVICE int32_t count() const {
    int32_t total = 0;
    for (int32_t i = 0; 32 * i < k_tiles_; ++i) {
      total += count_bits(load(i));
    }
    return total;
  }

 private:
  SPARSEDROP_HOST_DEVICE uint32_t load(int32_t index) const {
    uint32_t word = tiles_in_word(k_tiles_, index);
    if (a_ != nullptr) {
      word &= a_[index];
    }
    if (b_ != nullptr) {
      word &= b_[index];
    }
    return word;
  }

  uint32_t const* a_;
  uint32_t const* b_;
  int32_t k_tiles_;
  int32_t index_ = -1;
  uint32_t word_ = 0;
};

}  // namespace sparsedrop
