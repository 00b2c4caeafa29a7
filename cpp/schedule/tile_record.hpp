// One tile, as a CTA is told to compute it.

#pragma once

#include <cstdint>

#include "mask/slots.hpp"
#include "schedule/grid.hpp"

namespace sparsedrop {

constexpr int kMaxSlots = 3;

// Instead of a count of K tiles: there is no more work.
constexpr int32_t kNoMoreTiles = -1;

struct alignas(16) TileRecord {
  int32_t m;                // its line
  int32_t slot[kMaxSlots];  // kNoSlot behind the last one
  int32_t k_tiles;          // live K tiles, or kNoMoreTiles
  int32_t k_before;         // live K tiles before them, which other splits multiply
  int32_t is_last = 0;      // 1 where it is known that the CTA has no more
};

// What stands behind a CTA's last tile. Its first slot is 0, so that the lines of masks may be
// looked up for it, as for any record.
SPARSEDROP_HOST_DEVICE TileRecord no_more_tiles() {
  return {0, {0, kNoSlot, kNoSlot}, kNoMoreTiles, 0};
}

// Split `split` of a tile whose live K tiles are counted: they are shared out evenly.
SPARSEDROP_HOST_DEVICE TileRecord split_of(TileRecord tile, int32_t split, int32_t split_k) {
  auto const before = int32_t(int64_t(tile.k_tiles) * split / split_k);
  auto const end = int32_t(int64_t(tile.k_tiles) * (split + 1) / split_k);
  tile.k_before = before;
  tile.k_tiles = end - before;
  return tile;
}

// `count` neighbouring slots of a line, or as many as are left of it.
SPARSEDROP_HOST_DEVICE TileRecord neighbouring_slots(Grid const& grid, int32_t line, int32_t slot,
                                                     int32_t count, int32_t k_tiles) {
  TileRecord tile{line, {}, k_tiles, 0};
  for (int32_t s = 0; s < kMaxSlots; ++s) {
    tile.slot[s] = s < count && slot + s < grid.slots ? slot + s : kNoSlot;
  }
  return tile;
}

}  // namespace sparsedrop
