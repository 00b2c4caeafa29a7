// The one kernel: a persistent CTA takes tiles from the list until there are no more.
//
//   warp group 0, one thread   claims tiles and loads their live K tiles of A and B into the stages
//   warp groups 1, 2           multiply, apply the epilogue, store

#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "gemm/config.hpp"
#include "gemm/epilogue.hpp"
#include "gemm/mainloop.hpp"

namespace sparsedrop {

template <class Traits>
struct KernelParams {
  typename Mainloop<Traits>::Params mainloop;
  typename Epilogue<Traits>::Params epilogue;
  TileListHeader* header;
  TileRecord const* records;
};

template <class Traits>
struct Kernel {
  using Params = KernelParams<Traits>;
  using Mainloop = sparsedrop::Mainloop<Traits>;
  using Epilogue = sparsedrop::Epilogue<Traits>;
  using MainloopPipeline = typename Traits::MainloopPipeline;
  using TilePipeline = typename Traits::TilePipeline;
  using TileState = typename Traits::TileState;
  using SharedStorage = typename Traits::SharedStorage;

  // Of the 64 K registers of an SM; ptxas gives every thread 168 at entry.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  // Records in order of arrival: the first by the CTA's index, the others by a counter, so that a
  // CTA that got short tiles takes more of them. The next tile is claimed when the last K tile of
  // this one is under way and not earlier, or a CTA would sit on work that another is free to do;
  // what is in the stages hides the claim.
  CUTLASS_DEVICE static void produce(Params const& params, TilePipeline& tiles,
                                     MainloopPipeline& pipeline, SharedStorage& shared) {
    auto tile_write = cutlass::make_producer_start_state<TilePipeline>();
    auto write = cutlass::make_producer_start_state<MainloopPipeline>();
    int32_t const count = params.header->count;
    int32_t index = blockIdx.x;
    while (true) {
      TileRecord const record =
          index < count ? params.records[index] : TileRecord{0, {0, kNoSlot}, kNoMoreTiles};
      tiles.producer_acquire(tile_write);
      shared.records[tile_write.index()] = record;
      tiles.producer_commit(tile_write);
      ++tile_write;
      if (record.k_tiles == kNoMoreTiles) {
        break;
      }
      write = Mainloop::load(params.mainloop, record, pipeline, write, shared);
      index = atomicAdd(&params.header->next, 1);
    }
    // A stage may not go away under a consumer that still reads it.
    pipeline.producer_tail(write);
  }

  CUTLASS_DEVICE static void consume(Params const& params, TilePipeline& tiles,
                                     MainloopPipeline& pipeline, int warp_group,
                                     SharedStorage& shared) {
    using namespace cute;
    bool const first_lane = threadIdx.x % cutlass::NumThreadsPerWarp == 0;
    TileState tile_read;
    typename Traits::MainloopState read;
    Tensor acc = partition_fragment_C(
        typename Traits::TileMma{},
        Shape<typename Traits::TileM, typename Traits::TileN>{});  // (MMA,MMA_M,MMA_N)
    while (true) {
      tiles.consumer_wait(tile_read);
      TileRecord const record = shared.records[tile_read.index()];
      __syncwarp();
      if (first_lane) {
        tiles.consumer_release(tile_read);
      }
      ++tile_read;
      if (record.k_tiles == kNoMoreTiles) {
        break;
      }
      read = Mainloop::mma(record, pipeline, read, acc, warp_group, shared);
      Epilogue::store(params.epilogue, record, acc, warp_group, shared);
    }
    Epilogue::finish();
  }

  CUTLASS_DEVICE static void run(Params const& params, char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warp_group = cutlass::canonical_warp_group_idx();
    bool const produces = cutlass::canonical_warp_idx_sync() == 0 && cute::elect_one_sync();

    if (produces) {
      Mainloop::prefetch(params.mainloop);
      Epilogue::prefetch(params.epilogue);
    }

    // Warps, not threads, signal what they have read: one arrival each.
    constexpr int kConsumers = Traits::kConsumerWarpGroups * cutlass::NumWarpsPerWarpGroup;
    typename MainloopPipeline::Params mainloop_params;
    mainloop_params.transaction_bytes = Traits::kStageBytes;
    mainloop_params.role = warp_group == 0 ? MainloopPipeline::ThreadCategory::Producer
                                           : MainloopPipeline::ThreadCategory::Consumer;
    mainloop_params.is_leader = produces;
    mainloop_params.num_consumers = kConsumers;
    MainloopPipeline pipeline(shared.mainloop, mainloop_params,
                              cute::Shape<cute::_1, cute::_1, cute::_1>{});

    typename TilePipeline::Params tile_params;
    tile_params.role = warp_group == 0 ? TilePipeline::ThreadCategory::Producer
                                       : TilePipeline::ThreadCategory::Consumer;
    tile_params.producer_arv_count = 1;
    tile_params.consumer_arv_count = kConsumers;
    TilePipeline tiles(shared.tiles, tile_params);
    __syncthreads();

    // The list, and what earlier kernels wrote or still read, is ready from here on.
    cudaGridDependencySynchronize();

    if (warp_group == 0) {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
      if (produces) {
        produce(params, tiles, pipeline, shared);
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
