// The one kernel: a persistent CTA works through its output tiles, or multiplies its split of one.
//
//   warp group 0, warp 0       one thread loads the live K tiles of A and B into the stages
//                 warp 1       finds out which tiles the CTA computes; the first, warp 0 does too
//                 warps 2, 3   write zeros to the dropped blocks of D
//   warp groups 1, 2           multiply, apply the epilogue, store

#pragma once

#include "gemm/sm90/config.hpp"

#include <cutlass/arch/reg_reconfig.h>

#include "common/overlap.hpp"
#include "gemm/sm90/epilogue.hpp"
#include "gemm/sm90/mainloop.hpp"
#include "gemm/sm90/partials.hpp"
#include "gemm/sm90/scheduler.hpp"
#include "gemm/sm90/wide_epilogue.hpp"
#include "gemm/sm90/zero_fill.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
using EpilogueOf = cute::conditional_t<Traits::kIsWide, WideEpilogue<Traits>, Epilogue<Traits>>;

template <class Traits>
struct KernelParams {
  typename Mainloop<Traits>::Params mainloop;
  typename EpilogueOf<Traits>::Params epilogue;
  typename ZeroFill<Traits>::Params zero_fill;
  typename TileScheduler<Traits>::Params scheduler;
};

template <class Traits>
struct Kernel {
  using Params = KernelParams<Traits>;
  using Mainloop = sm90::Mainloop<Traits>;
  using Epilogue = EpilogueOf<Traits>;
  using ZeroFill = sm90::ZeroFill<Traits>;
  using TileScheduler = sm90::TileScheduler<Traits>;
  using Pipeline = typename Mainloop::Pipeline;

  struct SharedStorage {
    typename Mainloop::SharedStorage operands;
    typename Epilogue::SharedStorage epilogue;
    typename Pipeline::SharedStorage pipeline;
    typename TileScheduler::SharedStorage scheduler;
    typename ZeroFill::SharedStorage zero_fill;
  };
  static_assert(sizeof(SharedStorage) <= kSharedBytes, "a CTA has no more shared memory");
  static_assert(sizeof(typename Epilogue::SharedStorage) >= OwnOrder::kScratchBytes,
                "lines are sorted in what the epilogue uses once a tile is multiplied");
  static_assert(Traits::kThreads >= kMaxOwnLines, "a thread for each line that is sorted");

  // Of the 64 K registers of an SM; ptxas gives every thread 168 at entry.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  // One thread.
  CUTLASS_DEVICE static void load(Params const& params, TileScheduler& scheduler,
                                  Pipeline& pipeline, SharedStorage& shared) {
    auto write = cutlass::make_producer_start_state<Pipeline>();
    auto begun = [&] { ZeroFill::count_k_tile(shared.zero_fill); };
    for (TileRecord tile = scheduler.first(); tile.k_tiles != kNoMoreTiles;
         tile = scheduler.next()) {
      write = Mainloop::load(params.mainloop, tile, scheduler.k_tiles(tile), pipeline, write,
                             shared.operands, begun);
    }
    // With several tiles for each CTA this waits for consume(): the next launch's CTAs would be
    // scattered, and neighbours in the order of tiles belong on neighbouring SMs (see group_shift).
    if (scheduler.has_only_tile()) {
      let_next_launch_start();
    }
    ZeroFill::count_all_k_tiles(shared.zero_fill);
    // A stage may not go away under a consumer that still reads it.
    pipeline.producer_tail(write);
  }

  // A consumer warp group.
  CUTLASS_DEVICE static void consume(Params const& params, TileScheduler& scheduler,
                                     Pipeline& pipeline, int warp_group, SharedStorage& shared) {
    using namespace cute;
    typename Mainloop::State read;
    Tensor acc = partition_fragment_C(
        typename Traits::WarpGroupMma{},
        Shape<typename Traits::TileM, typename Traits::WarpGroupN>{});  // (MMA,MMA_M,MMA_N)
    typename Epilogue::Finished finished;
    auto store_next = [&] {
      Epilogue::store_next(params.epilogue, finished, warp_group, shared.epilogue);
    };
    while (true) {
      TileRecord const tile = scheduler.pop();
      if (tile.k_tiles == kNoMoreTiles) {
        break;
      }
      read = Mainloop::mma(tile, pipeline, read, acc, warp_group, shared.operands, store_next);
      // What a short mainloop left
      while (!Epilogue::is_stored(finished)) {
        store_next();
      }
      if constexpr (Traits::kSplits) {
        if (!Partials<Traits>::add_up(params.scheduler.sums, acc, warp_group)) {
          continue;
        }
      }
      Epilogue::finish_tile(params.epilogue, tile, acc, warp_group, shared.epilogue, finished);
      if (tile.is_last != 0) {
        break;
      }
    }
    let_next_launch_start();
    Epilogue::store_last(params.epilogue, finished, warp_group, shared.epilogue,
                         shared.operands.a.data());
    Epilogue::finish();
  }

  CUTLASS_DEVICE static void run(Params const& params, char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warp_group = cutlass::canonical_warp_group_idx();
    int const warp = cutlass::canonical_warp_idx_sync();
    bool const is_elected = cute::elect_one_sync();
    bool const loads = warp == 0 && is_elected;
    if (loads) {
      ZeroFill::count_no_k_tile(shared.zero_fill);  // all know it behind the barrier
      Mainloop::prefetch(params.mainloop);
      Epilogue::prefetch(params.epilogue);
    }
    Pipeline pipeline = Mainloop::make_pipeline(shared.pipeline, warp_group, loads);
    TileScheduler scheduler(params.scheduler, shared.scheduler, warp);
    __syncthreads();

    // The list, and what earlier kernels wrote or still read, is ready from here on.
    wait_for_launch_before();
    scheduler.prepare(&shared.epilogue);
    if (warp_group == 0) {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
      scheduler.find_first();
      if (loads) {
        load(params, scheduler, pipeline, shared);
      } else if (warp == 1) {
        scheduler.hand_out();
      } else if (warp >= ZeroFill::kFirstWarp) {
        ZeroFill::run(params.zero_fill, params.scheduler.ordering, shared.zero_fill);
      }
    } else {
      cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
      consume(params, scheduler, pipeline, warp_group - 1, shared);
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    matmul_kernel(__grid_constant__ KernelParams<Traits> const params) {
  extern __shared__ __align__(1024) char smem[];
  Kernel<Traits>::run(params, smem);
}

}  // namespace sparsedrop::sm90
