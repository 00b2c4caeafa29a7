// Masks as one orientation of a problem reads them.

#pragma once

#include <cstdint>

#include "common/divisor.hpp"

namespace sparsedrop {

// The bit words of one mask, line by line. Without words: all live.
//   a: bits along k for lines of m    b: bits along k for lines of n    d: bits along n for lines
//   of m
struct MaskLines {
  uint32_t const* words = nullptr;
  int64_t words_per_line = 0;  // 0: there is no mask
  Divisor block;               // elements of one line

  // On the host, where the words of a mask may not be known yet.
  bool exists() const { return words_per_line > 0; }

  // The words of the line that holds element `index`, or null.
  SPARSEDROP_HOST_DEVICE uint32_t const* of(int32_t index) const {
    return words == nullptr ? nullptr : words + index / block * words_per_line;
  }
};

}  // namespace sparsedrop
