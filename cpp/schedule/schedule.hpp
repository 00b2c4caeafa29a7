// Which CTA computes which tile of a product: what that depends on, and what the host decides.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mask/lines.hpp"
#include "schedule/grid.hpp"
#include "schedule/tile_list.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// A product in the orientation that a kernel runs: tile.m along m, tile.n along n.
struct ScheduleRequest {
  int64_t m;
  int64_t n;
  int64_t k;
  int32_t element_bytes;  // of A and B
  MaskLines a;
  MaskLines b;
  MaskLines d;
  Tile tile;
  bool has_parallel_slots;  // different warp groups multiply a tile's slots at the same time
  int32_t split_k;
};

Grid grid_of(ScheduleRequest const& request);

// Most records that a list may have, whatever the masks: every record has a slot of its own.
int64_t max_records(int64_t m, int64_t n, Tile const& tile);

// Where the splits of tiles leave their sums. CTA i multiplies split i / tiles of tile i % tiles,
// and all but the last splits leave sums: in the order of the CTAs, and of the warp groups within.
struct PartialSums {
  float* data = nullptr;
  unsigned long long* flags = nullptr;
  int32_t tiles = 0;
  int32_t split_k = 1;
};

struct Schedule {
  ScheduleRequest request;
  int32_t ctas;
  TileList list;  // without records: each CTA orders its tiles itself
  PartialSums sums;
};

// Bytes of a workspace: the list, or the partial sums of split tiles, one flag for each of
// `warp_groups`. Masks may not have words yet.
size_t schedule_bytes(ScheduleRequest const& request, int32_t warp_groups);

struct Resources {
  int32_t ctas;         // that the GPU runs at the same time
  int32_t warp_groups;  // that leave partial sums, each for itself
  bool overlaps;        // see common/overlap.hpp
  void* workspace;      // of schedule_bytes()
  cudaStream_t stream;
};

// Makes the list where the kernel needs one, in one launch; cudaErrorInvalidValue where a needed
// workspace is missing or unaligned.
cudaError_t make_schedule(ScheduleRequest const& request, Resources const& resources,
                          Schedule* schedule);

}  // namespace sparsedrop
