// Which tiles a CTA computes. No warp is spared for it: all find out the same, between two tiles.

#pragma once

#include "gemm/sm80/config.hpp"

#include "schedule/own_order.hpp"

namespace sparsedrop::sm80 {

template <class Traits>
class TileScheduler {
 public:
  using Config = typename Traits::Config;

  struct Params {
    Ordering ordering;
    TileList list;
    PartialSums sums;
  };

  static Params to_underlying_arguments(Schedule const& schedule) {
    return {Ordering::of(schedule), schedule.list, schedule.sums};
  }

  struct SharedStorage {
    OwnOrder own_order;
    int32_t claimed;  // the record of the list that thread 0 has taken
  };

  SPARSEDROP_DEVICE TileScheduler(Params const& params, SharedStorage& shared)
      : params_(params), shared_(shared) {}

  // By all threads, once masks may be read: the first tile. `scratch` is OwnOrder::kScratchBytes of
  // shared memory, which is free again behind it.
  SPARSEDROP_DEVICE TileRecord first(void* scratch) {
    Ordering const& by = params_.ordering;
    if constexpr (Traits::kSplits) {
      return split();
    }
    if (has_list()) {
      return record(int32_t(blockIdx.x));
    }
    if (by.known_by_index) {
      return only_tile();
    }
    if (by.lines_differ()) {
      shared_.own_order.template sort_lines<Config::kThreads>(by, static_cast<uint4*>(scratch));
    }
    if (by.d_lines.words != nullptr) {
      shared_.own_order.template count_tiles<Config::kThreads>(by);
    }
    return shared_.own_order.tile_of_turn(by, 0);
  }

  // By all threads, between two barriers of the CTA.
  SPARSEDROP_DEVICE TileRecord next() {
    if constexpr (Traits::kSplits) {
      return no_more_tiles();
    }
    if (has_list()) {
      if (threadIdx.x == 0) {
        shared_.claimed = atomicAdd(&params_.list.header->next, 1);
      }
      __syncthreads();
      return record(shared_.claimed);
    }
    if (params_.ordering.one_wave) {
      return no_more_tiles();
    }
    return shared_.own_order.tile_of_turn(params_.ordering, ++turn_);
  }

 private:
  SPARSEDROP_DEVICE bool has_list() const { return params_.list.records != nullptr; }

  SPARSEDROP_DEVICE TileRecord record(int32_t index) const {
    TileList const& list = params_.list;
    return index < list.header->count ? list.records[index] : no_more_tiles();
  }

  // Of a CTA that has one at most, and knows it by its index.
  SPARSEDROP_DEVICE TileRecord only_tile() const {
    Ordering const& by = params_.ordering;
    TileRecord tile = by.only_tile(by.span(int32_t(blockIdx.x)));
    if (tile.k_tiles != kNoMoreTiles) {
      tile.k_tiles = by.k_tiles_of(tile).count();
    }
    return tile;
  }

  // This CTA's split of a tile.
  SPARSEDROP_DEVICE TileRecord split() const {
    Ordering const& by = params_.ordering;
    PartialSums const& sums = params_.sums;
    auto const cta = int32_t(blockIdx.x);
    Span const span = by.span(cta % sums.tiles);
    TileRecord tile = by.tile_of(span, span.position);
    tile.k_tiles = by.k_tiles_of(tile).count();
    return split_of(tile, cta / sums.tiles, sums.split_k);
  }

  Params const& params_;
  SharedStorage& shared_;
  int32_t turn_ = 0;
};

}  // namespace sparsedrop::sm80
