// The list of output tiles of one product, in the order in which CTAs take them.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mask/tile_order.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

constexpr int kMaxSlots = 2;

// Instead of a count of K tiles: the tile lies in dropped blocks of D and is written as zeros.
constexpr int32_t kDropped = -1;
// Instead of a count of K tiles: there is no more work.
constexpr int32_t kNoMoreTiles = -2;
// Instead of a slot: the line had no further slot to pair with.
constexpr int32_t kNoSlot = -1;

struct alignas(16) TileRecord {
  int32_t m;                // in tiles
  int32_t slot[kMaxSlots];  // in slots
  int32_t k_tiles;          // live K tiles, or kDropped, or kNoMoreTiles
};

// A run of the live K tiles of one output tile. Where a tile is split among CTAs, the last run's
// CTA adds up what the others left in memory, in order, and stores.
struct alignas(16) Piece {
  TileRecord tile;           // with the K tiles of this run only
  int32_t k_first = 0;       // live K tiles before this run
  int32_t partial = kWhole;  // where to leave the sum, or kWhole: store it
  int32_t add_first = 0;     // partials to add before storing: the first one
  int32_t add_count = 0;     // and how many

  static constexpr int32_t kWhole = -1;
};

// Pieces of one CTA.
struct PieceRange {
  int32_t begin;
  int32_t end;
};

struct alignas(16) TileListHeader {
  int32_t dealt;  // records that were cut into pieces; the others are taken in turn
  int32_t count;  // records in the list
  int32_t next;   // the first that no CTA has taken yet
};

// Bit words of the masks as one orientation of the problem reads them. Null words: all live.
// a: bits along k for lines of m; b: bits along k for lines of n; d: bits along n for lines of m.
struct Lines {
  uint32_t const* words = nullptr;
  int64_t words_per_line = 0;
  int32_t block = 0;  // elements of one line

  // The words of the line that holds element `index`, or null.
  __host__ __device__ uint32_t const* of(int32_t index) const {
    return words == nullptr ? nullptr : words + index / block * words_per_line;
  }
};

struct TileListRequest {
  int64_t m;
  int64_t n;
  int64_t k;
  Lines a;
  Lines b;
  Lines d;
  Tile tile;
  int32_t ctas;  // of the product
  bool split;    // deal out equal shares of the K tiles first
};

FullGrid full_grid(int64_t m, int64_t n, int64_t k, Tile tile);

// Most records that a list may have, whatever the masks.
int64_t max_records(int64_t m, int64_t n, Tile tile);

// Where everything about the work of one product lies in its workspace.
struct TileList {
  TileListHeader* header;
  TileRecord* records;
  int32_t* scratch;  // a few values for each line of tiles

  // For split products only:
  Piece* pieces;       // CTA i's are ranges[i], to be done from the last to the first
  PieceRange* ranges;  // [ctas]
  int32_t* ready;      // [ctas, kConsumerWarpGroups], 1 where partial i is complete
  float* partials;     // [ctas, tile.m * tile.n]
  size_t bytes;
};

// Consumer warp groups of a CTA: each adds up, leaves and stores its own 64 rows.
constexpr int kConsumerWarpGroups = 2;

// Products on more CTAs than this are not split.
constexpr int32_t kMaxShares = 512;

TileList lay_out(void* workspace, TileListRequest const& request);

// One launch. The product may be launched behind it as a dependent launch.
cudaError_t make_tile_list(TileListRequest const& request, TileList const& list,
                           cudaStream_t stream);

}  // namespace sparsedrop
