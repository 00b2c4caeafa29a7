// The part of a tile that one warp multiplies.

#pragma once

#include "gemm/sm80/config.hpp"

namespace sparsedrop::sm80 {

template <class Config>
struct WarpPlace {
  int32_t row;     // within the tile
  int32_t column;  // within the tile
  int32_t lane;

  SPARSEDROP_HOST_DEVICE static constexpr WarpPlace of(int32_t thread) {
    int32_t const warp = thread / kWarp;
    return {warp % Config::kWarpsM * Config::kWarpM, warp / Config::kWarpsM * kWarpN,
            thread % kWarp};
  }
  SPARSEDROP_HOST_DEVICE constexpr int32_t slot() const { return column / Config::kSlotN; }
  SPARSEDROP_HOST_DEVICE constexpr int32_t column_in_slot() const {
    return column % Config::kSlotN;
  }
};

}  // namespace sparsedrop::sm80
