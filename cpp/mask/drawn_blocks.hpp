// Which blocks of a grid live by a random draw: computed anew by whoever asks.

#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.hpp"
#include "mask/philox.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

struct DrawnBlocks {
  uint64_t seed;
  uint64_t position;
  uint64_t live_below;  // of 2^32

  // By a block's index in the row-major grid.
  SPARSEDROP_HOST_DEVICE bool is_live(int64_t block) const {
    return philox(seed, position, uint64_t(block)).word[0] < live_below;
  }
};

inline bool is_legal(BernoulliDraw const& draw) {
  return draw.keep >= 0.0 && draw.keep <= 1.0 && draw.offset % 4 == 0;
}

inline DrawnBlocks drawn_blocks(BernoulliDraw const& draw) {
  return {draw.seed, draw.offset / 4, uint64_t(std::llround(std::ldexp(draw.keep, 32)))};
}

}  // namespace sparsedrop
