// Everything that a kernel of any architecture takes from the schedule, in one: it only compiles.

#include "common/overlap.hpp"
#include "schedule/own_order.hpp"

namespace sparsedrop {

__global__ void find_all_tiles(Ordering const by, TileRecord* records) {
  __shared__ OwnOrder own_order;
  __shared__ uint4 scratch[OwnOrder::kScratchBytes / sizeof(uint4)];
  wait_for_launch_before();
  own_order.sort_lines(by, scratch);
  own_order.count_tiles(by);
  TileRecord const first = by.known_by_index ? by.only_tile(by.span(int32_t(blockIdx.x)))
                                             : own_order.first_tile(by, by.span(0));
  own_order.deal(by, first, [&](TileRecord const& tile) { *records++ = tile; });
  let_next_launch_start();
}

}  // namespace sparsedrop
