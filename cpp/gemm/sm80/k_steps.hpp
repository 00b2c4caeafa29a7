// The k steps of a K list: its live K tiles, of which each may fill several stages.

#pragma once

#include "mask/k_tiles.hpp"

namespace sparsedrop::sm80 {

template <int kPerTile>
class KSteps {
 public:
  SPARSEDROP_HOST_DEVICE KSteps(KTiles const& k_tiles, int32_t count)
      : k_tiles_(k_tiles), left_(count * kPerTile) {}

  // The step behind `last`, the one that it gave before; kNoKTile behind the last of all, as often
  // as it is asked for.
  SPARSEDROP_HOST_DEVICE int32_t next(int32_t last) {
    bool const is_left = left_ > 0;
    bool const begins_tile = is_left && left_ % kPerTile == 0;
    int32_t const first = k_tiles_.next_if(begins_tile) * kPerTile;
    left_ -= int32_t(is_left);
    return !is_left ? kNoKTile : begins_tile ? first : last + 1;
  }

 private:
  KTiles k_tiles_;
  int32_t left_;
};

}  // namespace sparsedrop::sm80
