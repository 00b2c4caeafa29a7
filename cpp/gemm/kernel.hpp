// The one kernel: a persistent CTA takes tiles from the list until there are no more.
//
//   warp group 0, one thread   claims tiles and loads their live K tiles of A and B into the stages
//   warp groups 1, 2           multiply, apply the epilogue, store

#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "gemm/config.hpp"
#include "gemm/epilogue.hpp"
#include "gemm/mainloop.hpp"
#include "gemm/own_order.hpp"
#include "gemm/partials.hpp"

namespace sparsedrop {

template <class Traits>
struct KernelParams {
  typename Mainloop<Traits>::Params mainloop;
  typename Epilogue<Traits>::Params epilogue;
  FullGrid grid;
  TileList list;  // without records: the CTA orders its tiles itself
};

template <class Traits>
struct Kernel {
  using Params = KernelParams<Traits>;
  using Mainloop = sparsedrop::Mainloop<Traits>;
  using Epilogue = sparsedrop::Epilogue<Traits>;
  using MainloopPipeline = typename Traits::MainloopPipeline;
  using Partials = sparsedrop::Partials<Traits>;
  using PiecePipeline = typename Traits::PiecePipeline;
  using PieceState = typename Traits::PieceState;
  using MainloopState = typename Traits::MainloopState;

  struct SharedStorage : Traits::SharedStorage {
    OwnOrder own_order;
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024, "a CTA has at most 227 KB of shared memory");

  // Of the 64 K registers of an SM; ptxas gives every thread 168 at entry.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  // One thread hands out the CTA's work, piece by piece, and loads what each needs.
  CUTLASS_DEVICE static void produce(Params const& params, PiecePipeline& pieces,
                                     MainloopPipeline& pipeline, SharedStorage& shared) {
    auto piece_write = cutlass::make_producer_start_state<PiecePipeline>();
    auto write = cutlass::make_producer_start_state<MainloopPipeline>();
    auto hand_out = [&](Piece const& piece) {
      pieces.producer_acquire(piece_write);
      shared.pieces[piece_write.index()] = piece;
      pieces.producer_commit(piece_write);
      ++piece_write;
    };
    if (params.list.records == nullptr) {
      produce_in_own_order(params, hand_out, pipeline, write, shared);
    } else {
      produce_from_list(params, hand_out, pipeline, write, shared);
    }
    Piece end;
    end.tile.k_tiles = kNoMoreTiles;
    hand_out(end);
    // A stage may not go away under a consumer that still reads it.
    pipeline.producer_tail(write);
  }

  // Every ctas-th tile.
  template <class HandOut>
  CUTLASS_DEVICE static void produce_in_own_order(Params const& params, HandOut& hand_out,
                                                  MainloopPipeline& pipeline, MainloopState& write,
                                                  SharedStorage& shared) {
    auto const ctas = int32_t(gridDim.x);
    int32_t const kept_whole =
        tiles_kept_whole(whole_tiles(params.grid), params.grid.slots_per_tile, ctas);
    int32_t const count = records_of(params.grid, kept_whole);
    for (int32_t wave = 0;; ++wave) {
      int32_t const index = dealt_index(wave, int32_t(blockIdx.x), ctas);
      if (index >= count) {
        break;
      }
      Place const at = place_at(params.grid, kept_whole, index);
      int32_t const line = shared.own_order.order[at.position];
      int32_t const k_tiles = params.mainloop.b_lines.words == nullptr
                                  ? shared.own_order.live[line]
                                  : Mainloop::k_tiles_of(params.mainloop, line, at.slot[0]).count();
      Piece piece;
      piece.tile = {line, {at.slot[0], at.slot[1]}, k_tiles};
      hand_out(piece);
      write = Mainloop::load(params.mainloop, piece, pipeline, write, shared);
    }
  }

  // The CTA's share of a split product first, then whole tiles in order of arrival: the first by
  // the CTA's index, the others by a counter, so that a CTA that got short tiles takes more of
  // them. A tile is claimed when the last K tile of the one before is under way and not earlier, or
  // a CTA would sit on work that another is free to do; what is in the stages hides the claim.
  template <class HandOut>
  CUTLASS_DEVICE static void produce_from_list(Params const& params, HandOut& hand_out,
                                               MainloopPipeline& pipeline, MainloopState& write,
                                               SharedStorage& shared) {
    TileList const& list = params.list;
    if (list.ranges != nullptr) {
      // Backwards: what another CTA waits for, the part of a tile that the share ends in, comes
      // first.
      PieceRange const range = list.ranges[blockIdx.x];
      for (int32_t i = range.end - 1; i >= range.begin; --i) {
        Piece const piece = list.pieces[i];
        hand_out(piece);
        write = Mainloop::load(params.mainloop, piece, pipeline, write, shared);
      }
    }
    int32_t const count = list.header->count;
    int32_t index = list.header->dealt + int32_t(blockIdx.x);
    Piece piece;
    while (index < count) {
      piece.tile = list.records[index];
      hand_out(piece);
      write = Mainloop::load(params.mainloop, piece, pipeline, write, shared);
      index = atomicAdd(&list.header->next, 1);
    }
  }

  CUTLASS_DEVICE static void consume(Params const& params, PiecePipeline& pieces,
                                     MainloopPipeline& pipeline, int warp_group,
                                     SharedStorage& shared) {
    using namespace cute;
    bool const first_lane = threadIdx.x % cutlass::NumThreadsPerWarp == 0;
    PieceState piece_read;
    typename Traits::MainloopState read;
    Tensor acc = partition_fragment_C(
        typename Traits::TileMma{},
        Shape<typename Traits::TileM, typename Traits::TileN>{});  // (MMA,MMA_M,MMA_N)
    while (true) {
      pieces.consumer_wait(piece_read);
      Piece const piece = shared.pieces[piece_read.index()];
      __syncwarp();
      if (first_lane) {
        pieces.consumer_release(piece_read);
      }
      ++piece_read;
      if (piece.tile.k_tiles == kNoMoreTiles) {
        break;
      }
      read = Mainloop::mma(piece.tile, pipeline, read, acc, warp_group, shared);
      if (piece.partial != Piece::kWhole) {
        Partials::leave(params.list, piece, acc, warp_group);
      } else {
        Partials::add(params.list, piece, acc, warp_group);
        Epilogue::store(params.epilogue, piece.tile, acc, warp_group, shared);
      }
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
    constexpr int kConsumers = kConsumerWarpGroups * cutlass::NumWarpsPerWarpGroup;
    typename MainloopPipeline::Params mainloop_params;
    mainloop_params.transaction_bytes = Traits::kStageBytes;
    mainloop_params.role = warp_group == 0 ? MainloopPipeline::ThreadCategory::Producer
                                           : MainloopPipeline::ThreadCategory::Consumer;
    mainloop_params.is_leader = produces;
    mainloop_params.num_consumers = kConsumers;
    MainloopPipeline pipeline(shared.mainloop, mainloop_params,
                              cute::Shape<cute::_1, cute::_1, cute::_1>{});

    typename PiecePipeline::Params piece_params;
    piece_params.role = warp_group == 0 ? PiecePipeline::ThreadCategory::Producer
                                        : PiecePipeline::ThreadCategory::Consumer;
    piece_params.producer_arv_count = 1;
    piece_params.consumer_arv_count = kConsumers;
    PiecePipeline pieces(shared.piece_pipeline, piece_params);
    __syncthreads();

    // The list, and what earlier kernels wrote or still read, is ready from here on.
    cudaGridDependencySynchronize();
    if (params.list.records == nullptr) {
      shared.own_order.make(params.mainloop.a_lines, params.grid, Traits::Config::kM);
    }

    if (warp_group == 0) {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
      if (produces) {
        produce(params, pieces, pipeline, shared);
      }
    } else {
      cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
      consume(params, pieces, pipeline, warp_group - 1, shared);
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
