// The live K tiles of one output tile, as an iterator: the bits set in both operands' lines.

#pragma once

#include <cstdint>

#include "common/bits.hpp"

namespace sparsedrop {

// Instead of a K tile: no live one is left.
constexpr int32_t kNoKTile = -1;

// A null line is all live.
class KTiles {
 public:
  SPARSEDROP_HOST_DEVICE KTiles(uint32_t const* a_line, uint32_t const* b_line, int32_t k_tiles)
      : a_(a_line), b_(b_line), k_tiles_(k_tiles) {}

  // May be called until it has returned kNoKTile once.
  SPARSEDROP_HOST_DEVICE int32_t next() {
    while (word_ == 0) {
      ++index_;
      if (32 * index_ >= k_tiles_) {
        return kNoKTile;
      }
      word_ = load(index_);
    }
    int32_t const bit = lowest_bit(word_);
    word_ &= word_ - 1;
    return 32 * index_ + bit;
  }

  // As so many calls of next(), word by word; stops behind the last live one.
  SPARSEDROP_HOST_DEVICE void skip(int32_t live) {
    while (live > 0) {
      int32_t const in_word = count_bits(word_);
      if (in_word > live) {
        for (; live > 0; --live) {
          word_ &= word_ - 1;
        }
        return;
      }
      live -= in_word;
      word_ = 0;
      if (32 * (index_ + 1) >= k_tiles_) {
        return;
      }
      word_ = load(++index_);
    }
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
    uint32_t word = bits_in_word(k_tiles_, index);
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

// The next `count` live K tiles of an iterator: what one split of a tile multiplies.
class SomeKTiles {
 public:
  SPARSEDROP_HOST_DEVICE SomeKTiles(KTiles const& k_tiles, int32_t count)
      : k_tiles_(k_tiles), left_(count) {}

  // May be called until it has returned kNoKTile once.
  SPARSEDROP_HOST_DEVICE int32_t next() { return left_-- > 0 ? k_tiles_.next() : kNoKTile; }

 private:
  KTiles k_tiles_;
  int32_t left_;
};

}  // namespace sparsedrop
