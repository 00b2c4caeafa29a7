// The list of live output tiles of one product, in the order in which CTAs take them: for products
// whose tiles a CTA cannot find by itself.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/workspace.hpp"
#include "mask/lines.hpp"
#include "schedule/grid.hpp"
#include "schedule/tile_record.hpp"

namespace sparsedrop {

struct alignas(16) TileListHeader {
  int32_t count;  // records in the list
  int32_t next;   // the first that no CTA has taken yet
};

// Where the list of one product lies in its workspace.
struct TileList {
  TileListHeader* header = nullptr;
  TileRecord* records = nullptr;
  int32_t* scratch = nullptr;  // a few values for each line of tiles
};

TileList lay_out_list(Grid const& grid, int64_t max_records, Carver& carver);

struct TileListRequest {
  Grid grid;
  MaskLines a;
  MaskLines b;
  MaskLines d;
  int32_t tile_m;
  int32_t slot_n;
  Divisor ctas;  // of the product; CTA i starts with record i
};

// One launch. The product may be launched behind it as an overlapping launch.
cudaError_t make_tile_list(TileListRequest const& request, TileList const& list, bool overlaps,
                           cudaStream_t stream);

// Lines with the most live K tiles get the lowest bin, so that no long tile starts last. A shift,
// not a division: it is the cheapest way to fit any count of K tiles into `bins`.
SPARSEDROP_HOST_DEVICE int32_t order_bin(int32_t live_k_tiles, int32_t k_tiles, int32_t bins) {
  int32_t shift = 0;
  while (k_tiles >> shift >= bins) {
    ++shift;
  }
  return (k_tiles - live_k_tiles) >> shift;
}

// Number of tile `tile` of the line at `position`, in the order of the walk: within a group of
// lines all first tiles come first, then all second ones, and so on, so that the lines of a group
// read the same columns of B at the same time. `order` lists the lines, `tiles[line]` counts a
// line's tiles, and `start[position]` sums those of the lines before it in the order.
SPARSEDROP_HOST_DEVICE int32_t record_index(int32_t const* order, int32_t const* tiles,
                                            int32_t const* start, int32_t lines, int32_t shift,
                                            Place const& place) {
  int32_t const first = place.position >> shift << shift;
  int32_t const end = first + (1 << shift);
  int32_t const last = end < lines ? end : lines;
  int32_t index = start[first];
  for (int32_t other = first; other < last; ++other) {
    int32_t const count = tiles[order[other]];
    index += (count < place.tile ? count : place.tile) +
             (other < place.position && count > place.tile ? 1 : 0);
  }
  return index;
}

// Live slots of one line that share a list of K tiles are gathered into tiles, in their order; what
// is left over is a rest.
struct Gathering {
  int32_t whole;  // tiles
  int32_t rest;   // slots left over
  int32_t slots_per_tile;

  SPARSEDROP_HOST_DEVICE Gathering(int32_t live_slots, int32_t per_tile)
      : whole(whole_tiles(live_slots, per_tile)),
        rest(rest_slots(live_slots, per_tile)),
        slots_per_tile(per_tile) {}

  struct At {
    int32_t tile;  // `whole` where the slot is in the rest
    int32_t slot;  // within the tile
  };
  // Of the slot that has so many live ones before it.
  SPARSEDROP_HOST_DEVICE At at(int32_t rank) const {
    return {whole_tiles(rank, slots_per_tile), rest_slots(rank, slots_per_tile)};
  }
};

}  // namespace sparsedrop
