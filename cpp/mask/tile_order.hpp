// In which order the tiles of a product stand in its list. Pure functions, for the host's tests
// too.

#pragma once

#include <cstdint>

#include "mask/k_tiles.hpp"

namespace sparsedrop {

constexpr int32_t kLinesPerGroup = 8;  // lines of tiles that walk along n together

// Lines with the most live K tiles get the lowest bin, so that no long tile starts last. A shift,
// not a division: it is the cheapest way to fit any count of K tiles into `bins`.
SPARSEDROP_HOST_DEVICE int32_t order_bin(int32_t live_k_tiles, int32_t k_tiles, int32_t bins) {
  int32_t shift = 0;
  while (k_tiles >> shift >= bins) {
    ++shift;
  }
  return (k_tiles - live_k_tiles) >> shift;
}

// Where tile `tile` of the line at `position` stands: within a group of lines all first tiles come
// first, then all second ones, and so on, so that the lines of a group read the same columns of B
// at the same time. `order` lists the lines, `tiles[line]` counts a line's tiles, and
// `start[position]` sums those of the lines before it in the order.
SPARSEDROP_HOST_DEVICE int32_t record_index(int32_t const* order, int32_t const* tiles,
                                            int32_t const* start, int32_t lines, int32_t position,
                                            int32_t tile) {
  int32_t const first = position / kLinesPerGroup * kLinesPerGroup;
  int32_t const end = first + kLinesPerGroup;
  int32_t const last = end < lines ? end : lines;
  int32_t index = start[first];
  for (int32_t other = first; other < last; ++other) {
    int32_t const count = tiles[order[other]];
    index += (count < tile ? count : tile) + (other < position && count > tile ? 1 : 0);
  }
  return index;
}

struct GroupPlace {
  int32_t position;  // in the order of lines
  int32_t tile;
};

// The inverse of record_index where every line has the same number of tiles.
SPARSEDROP_HOST_DEVICE GroupPlace place_in_groups(int32_t index, int32_t lines, int32_t tiles) {
  int32_t const first = index / (kLinesPerGroup * tiles) * kLinesPerGroup;
  int32_t const left = lines - first;
  int32_t const in_group = left < kLinesPerGroup ? left : kLinesPerGroup;
  int32_t const within = index - first * tiles;
  return {first + within % in_group, within / in_group};
}

}  // namespace sparsedrop
