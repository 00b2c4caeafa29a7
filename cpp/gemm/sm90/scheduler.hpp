// Which tiles a CTA computes: one warp finds them, a queue hands them to the thread that loads and
// to the warp groups that multiply. Where there is a list, the thread that loads takes them from
// it.

#pragma once

#include "gemm/sm90/config.hpp"

#include "gemm/sm90/barriers.hpp"
#include "schedule/own_order.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
class TileScheduler {
 public:
  using Arguments = Schedule;

  struct Params {
    Ordering ordering;
    TileList list;
    PartialSums sums;
  };

  static Params to_underlying_arguments(Arguments const& schedule) {
    return {Ordering::of(schedule), schedule.list, schedule.sums};
  }

  static constexpr int kRecords = 4;
  static_assert(
      kRecords >= 2,
      "the queue must hold the only tile and the end marker even if the loader never pops");
  using Queue = cutlass::PipelineAsync<kRecords>;
  using QueueState = cutlass::PipelineState<kRecords>;

  struct SharedStorage {
    typename Queue::SharedStorage queue;
    TileRecord records[kRecords];
    OwnOrder own_order;
  };

  // By all threads, of which `warp` is the warp. A __syncthreads() has to follow.
  CUTLASS_DEVICE TileScheduler(Params const& params, SharedStorage& shared, int warp)
      : params_(params), shared_(shared), queue_(shared.queue, queue_params()), warp_(warp) {
    if (finds_first() && !counts_tiles()) {
      span_ = first_span();
    }
  }

  // By all threads, once masks may be read. `scratch` is OwnOrder::kScratchBytes of shared memory,
  // which nobody else uses before the first tile is handed out.
  CUTLASS_DEVICE void prepare(void* scratch) {
    if (orders_lines()) {
      if (params_.ordering.lines_differ()) {
        shared_.own_order.sort_lines(params_.ordering, static_cast<uint4*>(scratch));
      }
      if (counts_tiles()) {
        shared_.own_order.count_tiles(params_.ordering);
      }
    }
  }

  // By whole warps. Warps 0 and 1 both find the first tile, so that loading does not wait for the
  // queue; without a list.
  CUTLASS_DEVICE void find_first() {
    if (finds_first()) {
      first_ = Traits::kSplits ? first_split()
               : params_.ordering.known_by_index
                   ? params_.ordering.only_tile(span_)
                   : shared_.own_order.first_tile(params_.ordering, span_);
    }
  }

  // By warp 1, ahead of all others: hands out all tiles, which take it some hundreds of nanoseconds
  // each. With a list it has nothing to do.
  CUTLASS_DEVICE void hand_out() {
    if (!finds_first()) {
      return;
    }
    Ordering const& by = params_.ordering;
    auto push_once = [&](TileRecord const& record) {
      if (lane_id() == 0) {
        push(record);
      }
    };
    if (first_.k_tiles != kNoMoreTiles) {
      if (by.known_by_index) {
        if constexpr (!Traits::kSplits) {
          first_.k_tiles = by.k_tiles_of(first_).count();
        }
        first_.is_last = 1;
        push_once(first_);
      } else {
        shared_.own_order.deal(by, first_, push_once);
      }
    }
    push_once(no_more_tiles());
  }

  // By the one thread that loads: the first tile is known to it, the others are in the queue, from
  // the second record on. If the CTA has only one tile, the loader never pops: two records do not
  // fill the queue.
  CUTLASS_DEVICE TileRecord first() {
    if (has_list()) {
      return claim(int32_t(blockIdx.x));
    }
    if (!has_only_tile()) {
      queue_.consumer_release(read_);
      ++read_;
    }
    return first_;
  }

  CUTLASS_DEVICE TileRecord next() {
    if (has_list()) {
      return claim(atomicAdd(&params_.list.header->next, 1));
    }
    return has_only_tile() ? no_more_tiles() : pop();
  }

  // By every thread that multiplies: the next tile.
  CUTLASS_DEVICE TileRecord pop() {
    queue_.consumer_wait(read_);
    keep_order();
    TileRecord const record = shared_.records[read_.index()];
    keep_order();
    queue_.consumer_release(read_);
    ++read_;
    return record;
  }

  // The live K tiles of a record, as an iterator.
  CUTLASS_DEVICE auto k_tiles(TileRecord const& record) const {
    KTiles k_tiles = params_.ordering.k_tiles_of(record);
    if constexpr (Traits::kSplits) {
      k_tiles.skip(record.k_before);
      return SomeKTiles(k_tiles, record.k_tiles);
    } else {
      return k_tiles;
    }
  }

  CUTLASS_DEVICE bool has_only_tile() const { return params_.ordering.one_wave; }

 private:
  CUTLASS_DEVICE static typename Queue::Params queue_params() {
    typename Queue::Params params;
    params.role = Queue::ThreadCategory::ProducerConsumer;
    params.producer_arv_count = 1;
    // All that multiply, and the thread that loads
    params.consumer_arv_count = kConsumerWarpGroups * cutlass::NumThreadsPerWarpGroup + 1;
    return params;
  }

  CUTLASS_DEVICE bool has_list() const { return params_.list.records != nullptr; }
  CUTLASS_DEVICE bool finds_first() const { return warp_ < 2 && !has_list(); }
  CUTLASS_DEVICE bool orders_lines() const {
    return !has_list() && !params_.ordering.known_by_index;
  }
  CUTLASS_DEVICE bool counts_tiles() const {
    return orders_lines() && params_.ordering.d_lines.words != nullptr;
  }

  // Where this CTA's first tile stands as far as the masks have no say: known before they are read.
  CUTLASS_DEVICE Span first_span() const {
    Ordering const& by = params_.ordering;
    auto const cta = int32_t(blockIdx.x);
    return by.span(Traits::kSplits ? cta % params_.sums.tiles
                   : by.one_wave   ? cta
                                   : by.records.dealt(0, cta, by.ctas.value()));
  }

  // This CTA's split of a tile.
  CUTLASS_DEVICE TileRecord first_split() const {
    Ordering const& by = params_.ordering;
    TileRecord tile = by.tile_of(span_, span_.position);
    tile.k_tiles = by.k_tiles_of(tile).count();
    return split_of(tile, int32_t(blockIdx.x) / params_.sums.tiles, params_.sums.split_k);
  }

  CUTLASS_DEVICE void push(TileRecord const& record) {
    queue_.producer_acquire(write_);
    keep_order();
    shared_.records[write_.index()] = record;
    keep_order();
    queue_.producer_commit(write_);
    ++write_;
  }

  // Takes tiles from the list in order of arrival, and tells the others. The first record is that
  // of the CTA's index, the others come by a counter, so that a CTA that got short tiles takes more
  // of them. A tile is claimed when the last K tile of the one before is under way and not earlier,
  // or a CTA would sit on work that another is free to do; what is in the stages hides the claim.
  CUTLASS_DEVICE TileRecord claim(int32_t index) {
    TileList const& list = params_.list;
    push(index < list.header->count ? list.records[index] : no_more_tiles());
    return pop();
  }

  Params const& params_;
  SharedStorage& shared_;
  Queue queue_;
  QueueState write_ = cutlass::make_producer_start_state<Queue>();
  QueueState read_;
  int warp_;
  Span span_{0, 0, 0};
  TileRecord first_ = no_more_tiles();
};

}  // namespace sparsedrop::sm90
