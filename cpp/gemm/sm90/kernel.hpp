// The one kernel: a persistent CTA works through its output tiles, or multiplies its part of one.
//
//   warp group 0, warp 0       one thread loads the live K tiles of A and B into the stages
//                 warp 1       finds out which tiles the CTA computes; the first, warp 0 does too
//                 warps 2, 3   write zeros to the dropped blocks of D
//   warp groups 1, 2           multiply, apply the epilogue, store

#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "gemm/sm90/config.hpp"
#include "gemm/sm90/epilogue.hpp"
#include "gemm/sm90/mainloop.hpp"
#include "gemm/sm90/partials.hpp"
#include "gemm/sm90/zero_fill.hpp"
#include "schedule/own_order.hpp"

namespace sparsedrop {

template <class Traits>
struct KernelParams {
  typename Mainloop<Traits>::Params mainloop;
  typename Epilogue<Traits>::Params epilogue;
  typename ZeroFill<Traits>::Params zero_fill;
  Ordering ordering;
  TileList list;  // without records: the CTA orders its tiles itself
  PartialSums sums;
};

template <class Traits>
struct Kernel {
  using Params = KernelParams<Traits>;
  using Mainloop = sparsedrop::Mainloop<Traits>;
  using Epilogue = sparsedrop::Epilogue<Traits>;
  using Config = typename Traits::Config;
  using MainloopPipeline = typename Traits::MainloopPipeline;
  using TilePipeline = typename Traits::TilePipeline;
  using TileState = typename Traits::TileState;

  struct SharedStorage : Traits::SharedStorage {
    OwnOrder own_order;
  };
  static_assert(Traits::kRecords >= 2,
                "an only tile and the end of all fit into the queue without the loader's pops");
  static_assert(sizeof(SharedStorage) <= kSharedBytes, "a CTA has no more shared memory");

  // Of the 64 K registers of an SM; ptxas gives every thread 168 at entry.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  // The barriers' assembly does not tell the compiler that it orders memory accesses.
  CUTLASS_DEVICE static void keep_order() { asm volatile("" ::: "memory"); }

  // Its CTAs take the SMs that are free, and wait for this grid's end. Any earlier, and they would
  // be scattered: where CTAs have several tiles, neighbours in the order of tiles belong on
  // neighbouring SMs (see group_shift).
  CUTLASS_DEVICE static void let_next_launch_start() { cudaTriggerProgrammaticLaunchCompletion(); }

  // The queue of tiles on their way from who finds them to who loads and multiplies them.
  CUTLASS_DEVICE static void push(TileRecord const& record, TilePipeline& tiles, TileState& write,
                                  SharedStorage& shared) {
    tiles.producer_acquire(write);
    keep_order();
    shared.records[write.index()] = record;
    keep_order();
    tiles.producer_commit(write);
    ++write;
  }

  CUTLASS_DEVICE static TileRecord pop(TilePipeline& tiles, TileState& read,
                                       SharedStorage& shared) {
    tiles.consumer_wait(read);
    keep_order();
    TileRecord const record = shared.records[read.index()];
    keep_order();
    tiles.consumer_release(read);
    ++read;
    return record;
  }

  CUTLASS_DEVICE static bool has_list(Params const& params) {
    return params.list.records != nullptr;
  }

  // Where this CTA's first tile stands, as far as the masks have no say: known before they are
  // read.
  CUTLASS_DEVICE static OwnOrder::Run first_run(Params const& params) {
    Ordering const& by = params.ordering;
    auto const cta = int32_t(blockIdx.x);
    return OwnOrder::run_of(by, Traits::kSplits ? cta % params.sums.tiles
                                : by.one_wave   ? cta
                                                : by.records.dealt(0, cta, by.ctas.value()));
  }

  // By a warp: the first tile of this CTA, or its part of one. Of a whole one the K tiles are not
  // counted.
  CUTLASS_DEVICE static TileRecord first_tile(Params const& params, OwnOrder::Run const& run,
                                              SharedStorage& shared) {
    Ordering const& by = params.ordering;
    if constexpr (Traits::kSplits) {
      TileRecord tile = OwnOrder::tile_of(by, run, run.position);
      tile.k_tiles = by.live_k_tiles_of(tile);
      return part_of(tile, int32_t(blockIdx.x) / params.sums.tiles, params.sums.parts);
    } else {
      return by.one_each ? OwnOrder::only_tile(by, run) : shared.own_order.first_tile(by, run);
    }
  }

  // One warp, ahead of all others: a tile takes it some hundreds of nanoseconds.
  CUTLASS_DEVICE static void find_tiles(Params const& params, TileRecord first, TilePipeline& tiles,
                                        SharedStorage& shared) {
    auto write = cutlass::make_producer_start_state<TilePipeline>();
    auto hand_out = [&](TileRecord const& record) {
      if (lane_id() == 0) {
        push(record, tiles, write, shared);
      }
    };
    if (first.k_tiles != kNoMoreTiles) {
      if (params.ordering.one_each) {
        if constexpr (!Traits::kSplits) {
          first.k_tiles = params.ordering.live_k_tiles_of(first);
        }
        first.is_last = 1;
        hand_out(first);
      } else {
        shared.own_order.deal(params.ordering, first, hand_out);
      }
    }
    hand_out(no_more_tiles());
  }

  // One thread: the first tile is known to it, the others are in the queue, from the second record
  // on. An only tile's queue it leaves to the others: two records do not fill it.
  CUTLASS_DEVICE static void load_tiles(Params const& params, TileRecord const& first,
                                        TilePipeline& tiles, MainloopPipeline& pipeline,
                                        SharedStorage& shared) {
    TileState read;
    bool const has_only_tile = params.ordering.one_wave;
    if (!has_only_tile) {
      tiles.consumer_release(read);
      ++read;
    }
    load_each(params, first, pipeline, shared, [&] {
      if (has_only_tile) {
        let_next_launch_start();
        return no_more_tiles();
      }
      return pop(tiles, read, shared);
    });
  }

  // One thread: takes tiles from the list in order of arrival, and tells the others. The first
  // record is that of the CTA's index, the others come by a counter, so that a CTA that got short
  // tiles takes more of them. A tile is claimed when the last K tile of the one before is under way
  // and not earlier, or a CTA would sit on work that another is free to do; what is in the stages
  // hides the claim.
  CUTLASS_DEVICE static void load_listed_tiles(Params const& params, TilePipeline& tiles,
                                               MainloopPipeline& pipeline, SharedStorage& shared) {
    TileList const& list = params.list;
    auto write = cutlass::make_producer_start_state<TilePipeline>();
    TileState read;
    auto take = [&](int32_t claimed) {
      push(claimed < list.header->count ? list.records[claimed] : no_more_tiles(), tiles, write,
           shared);
      return pop(tiles, read, shared);
    };
    load_each(params, take(int32_t(blockIdx.x)), pipeline, shared,
              [&] { return take(atomicAdd(&list.header->next, 1)); });
  }

  template <class Next>
  CUTLASS_DEVICE static void load_each(Params const& params, TileRecord record,
                                       MainloopPipeline& pipeline, SharedStorage& shared,
                                       Next const& next) {
    auto write = cutlass::make_producer_start_state<MainloopPipeline>();
    while (record.k_tiles != kNoMoreTiles) {
      write = Mainloop::load(params.mainloop, record, pipeline, write, shared);
      record = next();
    }
    atomicExch(&shared.begun, Traits::kAllBegun);
    // A stage may not go away under a consumer that still reads it.
    pipeline.producer_tail(write);
  }

  CUTLASS_DEVICE static void consume(Params const& params, TilePipeline& tiles,
                                     MainloopPipeline& pipeline, int warp_group,
                                     SharedStorage& shared) {
    using namespace cute;
    TileState tile_read;
    typename Traits::MainloopState read;
    Tensor acc = partition_fragment_C(
        typename Traits::GroupMma{},
        Shape<typename Traits::TileM, typename Traits::GroupN>{});  // (MMA,MMA_M,MMA_N)
    typename Epilogue::Finished finished;
    auto store_next = [&] { Epilogue::store_next(params.epilogue, finished, warp_group, shared); };
    while (true) {
      TileRecord const record = pop(tiles, tile_read, shared);
      if (record.k_tiles == kNoMoreTiles) {
        break;
      }
      read = Mainloop::mma(record, pipeline, read, acc, warp_group, shared, store_next);
      // What a short mainloop left
      while (!Epilogue::is_stored(finished)) {
        store_next();
      }
      if constexpr (Traits::kSplits) {
        if (!Partials<Traits>::add_up(params.sums, acc, warp_group)) {
          continue;
        }
      }
      Epilogue::finish_tile(params.epilogue, record, acc, warp_group, shared, finished);
      if (record.is_last != 0) {
        break;
      }
    }
    let_next_launch_start();
    Epilogue::store_last(params.epilogue, finished, warp_group, shared);
    Epilogue::finish();
  }

  CUTLASS_DEVICE static void run(Params const& params, char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warp_group = cutlass::canonical_warp_group_idx();
    int const warp = cutlass::canonical_warp_idx_sync();
    bool const is_elected = cute::elect_one_sync();
    bool const loads = warp == 0 && is_elected;

    if (loads) {
      shared.begun = 0;  // all know it behind the barrier
      Mainloop::prefetch(params.mainloop);
      Epilogue::prefetch(params.epilogue);
    }

    constexpr int kConsumers = kConsumerWarpGroups * cutlass::NumThreadsPerWarpGroup;
    typename MainloopPipeline::Params mainloop_params;
    mainloop_params.transaction_bytes = Traits::kStageBytes;
    mainloop_params.role = warp_group == 0 ? MainloopPipeline::ThreadCategory::Producer
                                           : MainloopPipeline::ThreadCategory::Consumer;
    mainloop_params.is_leader = loads;
    // One arrival a warp for each stage.
    mainloop_params.num_consumers = kConsumers / cutlass::NumThreadsPerWarp;
    MainloopPipeline pipeline(shared.mainloop, mainloop_params,
                              cute::Shape<cute::_1, cute::_1, cute::_1>{});

    typename TilePipeline::Params tile_params;
    tile_params.role = TilePipeline::ThreadCategory::ProducerConsumer;
    tile_params.producer_arv_count = 1;
    tile_params.consumer_arv_count = kConsumers + 1;  // and who loads
    TilePipeline tiles(shared.tiles, tile_params);
    bool const finds_first = warp < 2 && !has_list(params);
    bool const orders = !has_list(params) && !params.ordering.one_each;
    bool const counts_tiles = orders && params.ordering.d_lines.words != nullptr;
    OwnOrder::Run run{0, 0, 0};
    if (finds_first && !counts_tiles) {
      run = first_run(params);
    }
    __syncthreads();

    // The list, and what earlier kernels wrote or still read, is ready from here on.
    cudaGridDependencySynchronize();
    if (orders) {
      if (params.ordering.lines_differ()) {
        shared.own_order.sort_lines(params.ordering, reinterpret_cast<uint4*>(shared.d.data()));
      }
      if (counts_tiles) {
        shared.own_order.count_tiles(params.ordering);
      }
    }

    if (warp_group == 0) {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
      constexpr int kFirstFilling = 2 * cutlass::NumThreadsPerWarp;
      TileRecord first = no_more_tiles();
      if (finds_first) {
        first = first_tile(params, run, shared);
      }
      // In this order: the other way round the same loops lie elsewhere in memory, and tiles of 64
      // rows take 20 % longer on an H200.
      if (loads && has_list(params)) {
        load_listed_tiles(params, tiles, pipeline, shared);
      } else if (loads) {
        load_tiles(params, first, tiles, pipeline, shared);
      } else if (warp == 1 && finds_first) {
        find_tiles(params, first, tiles, shared);
      } else if (warp >= 2 && params.ordering.d_lines.words != nullptr) {
        ZeroFill<Traits>::run(params.zero_fill, params.ordering, &shared.begun,
                              int32_t(threadIdx.x) - kFirstFilling,
                              cutlass::NumThreadsPerWarpGroup - kFirstFilling);
      }
    } else {
      cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
      consume(params, tiles, pipeline, warp_group - 1, shared);
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    matmul_kernel(__grid_constant__ KernelParams<Traits> const params) {
  extern __shared__ __align__(1024) char smem[];
  Kernel<Traits>::run(params, smem);
}

}  // namespace sparsedrop
