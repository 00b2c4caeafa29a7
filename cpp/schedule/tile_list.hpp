// The list of live output tiles of one product, in the order in which CTAs take them.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mask/lines.hpp"
#include "mask/slots.hpp"
#include "schedule/tile_order.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

constexpr int64_t kElementBytes = 2;  // of all operands

// Instead of a count of K tiles: there is no more work.
constexpr int32_t kNoMoreTiles = -1;

struct alignas(16) TileRecord {
  int32_t m;                // in tiles
  int32_t slot[kMaxSlots];  // in slots; kNoSlot behind the last one
  int32_t k_tiles;          // live K tiles, or kNoMoreTiles
  int32_t k_before;         // live K tiles before them, which other parts multiply
  int32_t is_last = 0;      // where it is known that the CTA has no more
};

// What stands behind a CTA's last tile.
SPARSEDROP_HOST_DEVICE TileRecord no_more_tiles() {
  return {0, {0, kNoSlot, kNoSlot}, kNoMoreTiles, 0};
}

// Part `part` of a tile whose live K tiles are counted: they are shared out evenly.
SPARSEDROP_HOST_DEVICE TileRecord part_of(TileRecord tile, int32_t part, int32_t parts) {
  auto const before = int32_t(int64_t(tile.k_tiles) * part / parts);
  auto const end = int32_t(int64_t(tile.k_tiles) * (part + 1) / parts);
  tile.k_before = before;
  tile.k_tiles = end - before;
  return tile;
}

// Of a line without dropped slots: `count` neighbouring slots, or as many as are left.
SPARSEDROP_HOST_DEVICE TileRecord grid_tile(FullGrid const& grid, int32_t line, int32_t slot,
                                            int32_t count, int32_t k_tiles) {
  TileRecord tile{line, {}, k_tiles, 0};
  for (int32_t s = 0; s < kMaxSlots; ++s) {
    tile.slot[s] = s < count && slot + s < grid.slots ? slot + s : kNoSlot;
  }
  return tile;
}

struct alignas(16) TileListHeader {
  int32_t count;  // records in the list
  int32_t next;   // the first that no CTA has taken yet
};

struct TileListRequest {
  int64_t m;
  int64_t n;
  int64_t k;
  Lines a;
  Lines b;
  Lines d;
  Tile tile;
  Divisor ctas;  // of the product; CTA i starts with record i
};

// `b_block_n`: columns of the blocks of B's mask, a whole number of tiles; 0: it has none.
FullGrid full_grid(int64_t m, int64_t n, int64_t k, Tile tile, int32_t b_block_n);

// Of lines that may be null.
inline int32_t block_of(Lines const& lines) {
  return lines.words == nullptr ? 0 : lines.block.value();
}

// Most records that a list may have, whatever the masks.
int64_t max_records(int64_t m, int64_t n, Tile tile);

// Where the list of one product lies in its workspace.
struct TileList {
  TileListHeader* header;
  TileRecord* records;
  int32_t* scratch;  // a few values for each line of tiles
  size_t bytes;
};

TileList lay_out(void* workspace, TileListRequest const& request);

// One launch. The product may be launched behind it as a dependent launch.
cudaError_t make_tile_list(TileListRequest const& request, TileList const& list,
                           cudaStream_t stream);

}  // namespace sparsedrop
