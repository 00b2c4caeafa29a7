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
    if (left_ <= 0) {
      return kNoKTile;
    }
    bool const begins_tile = left_ % kPerTile == 0;
    --left_;
    return begins_tile ? k_tiles_.next() * kPerTile : last + 1;
  }

 private:
  KTiles k_tiles_;
  int32_t left_;
};

}  // namespace sparsedrop::sm80
