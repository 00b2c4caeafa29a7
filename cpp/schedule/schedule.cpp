#include "schedule/schedule.hpp"

#include <cstdint>

#include "common/host_device.hpp"
#include "common/workspace.hpp"
#include "schedule/ordering.hpp"

namespace sparsedrop {
namespace {

bool is_aligned(void const* workspace) {
  return workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % 16 == 0;
}

// A CTA for each split of each tile; tiles stay whole.
PartialSums lay_out_sums(ScheduleRequest const& request, int32_t warp_groups, Carver& carver) {
  Tile const& tile = request.tile;
  PartialSums sums;
  sums.tiles = grid_of(request).records(1).count();
  sums.split_k = request.split_k;
  int64_t const leaving = int64_t(sums.tiles) * (sums.split_k - 1);
  sums.data = carver.take<float>(leaving * tile.m * tile.n);
  sums.flags = carver.take<unsigned long long>(leaving * warp_groups);
  return sums;
}

}  // namespace

Grid grid_of(ScheduleRequest const& request) {
  Tile const& tile = request.tile;
  auto const lines = int32_t(ceil_div(request.m, tile.m));
  int32_t const slots_per_k_list = request.b.exists() ? request.b.block.value() / tile.slot_n : 0;
  int64_t const b_bytes = request.element_bytes * request.n * request.k;
  return Grid(lines, int32_t(ceil_div(request.n, tile.slot_n)), tile.n / tile.slot_n,
              slots_per_k_list, int32_t(ceil_div(request.k, tile.k)),
              group_shift(lines, tile.n, b_bytes));
}

int64_t max_records(int64_t m, int64_t n, Tile const& tile) {
  return ceil_div(m, tile.m) * ceil_div(n, tile.slot_n);
}

size_t schedule_bytes(ScheduleRequest const& request, int32_t warp_groups) {
  Carver carver(nullptr);
  if (request.split_k > 1) {
    lay_out_sums(request, warp_groups, carver);
  } else if (!Ordering::suits(request)) {
    lay_out_list(grid_of(request), max_records(request.m, request.n, request.tile), carver);
  }
  return carver.used();
}

cudaError_t make_schedule(ScheduleRequest const& request, Resources const& resources,
                          Schedule* schedule) {
  *schedule = Schedule{request, 0, {}, {}};
  bool const splits = request.split_k > 1;
  bool const needs_list = !splits && !Ordering::suits(request);
  if ((splits || needs_list) && !is_aligned(resources.workspace)) {
    return cudaErrorInvalidValue;
  }
  Carver carver(resources.workspace);
  if (splits) {
    schedule->sums = lay_out_sums(request, resources.warp_groups, carver);
    schedule->ctas = schedule->sums.tiles * schedule->sums.split_k;
    return cudaSuccess;
  }
  int64_t const records = max_records(request.m, request.n, request.tile);
  schedule->ctas = int32_t(records > resources.ctas ? resources.ctas : records);
  if (!needs_list) {
    return cudaSuccess;
  }
  Grid const grid = grid_of(request);
  schedule->list = lay_out_list(grid, records, carver);
  TileListRequest const wanted{grid,           request.a,           request.b,     request.d,
                               request.tile.m, request.tile.slot_n, schedule->ctas};
  return make_tile_list(wanted, schedule->list, resources.overlaps, resources.stream);
}

}  // namespace sparsedrop
