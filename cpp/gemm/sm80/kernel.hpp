// The one kernel: a persistent CTA works through its output tiles, or multiplies its split of one.
// All warps do the same: they send for operands, multiply, store. Between two tiles the first
// stages of the next are on their way while the last one's result is stored.

#pragma once

#include "gemm/sm80/config.hpp"

#include "common/overlap.hpp"
#include "gemm/sm80/epilogue.hpp"
#include "gemm/sm80/mainloop.hpp"
#include "gemm/sm80/partials.hpp"
#include "gemm/sm80/scheduler.hpp"
#include "gemm/sm80/zero_fill.hpp"

namespace sparsedrop::sm80 {

template <class Traits>
struct KernelParams {
  typename Loader<Traits>::Params loader;
  typename Epilogue<Traits>::Params epilogue;
  typename ZeroFill<Traits>::Params zero_fill;
  typename TileScheduler<Traits>::Params scheduler;
  int32_t stages;
};

template <class Traits>
struct Kernel {
  using Params = KernelParams<Traits>;
  using Config = typename Traits::Config;
  using Mainloop = sm80::Mainloop<Traits>;
  using TileScheduler = sm80::TileScheduler<Traits>;

  // The stages lie behind it.
  struct alignas(kAlignment) SharedStorage {
    typename TileScheduler::SharedStorage scheduler;
  };
  static_assert(Config::kStageBytes * kMinStages >= OwnOrder::kScratchBytes,
                "lines are sorted in the stages, before anything is sent for");

  SPARSEDROP_DEVICE static void run(Params const& params, char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    char* const stages = smem + sizeof(SharedStorage);
    Ordering const& by = params.scheduler.ordering;
    TileScheduler scheduler(params.scheduler, shared.scheduler);
    Mainloop mainloop(params.loader, stages, params.stages);
    ZeroFill<Traits> zero_fill(params.zero_fill, by);

    // The list, and what earlier kernels wrote or still read, is ready from here on.
    wait_for_launch_before();
    TileRecord tile = scheduler.first(stages);
    if (tile.k_tiles != kNoMoreTiles) {
      mainloop.begin(tile, by.k_tiles_of(tile));
    }
    while (tile.k_tiles != kNoMoreTiles) {
      zero_fill.pass(ZeroFill<Traits>::kSlotsOfTile);
      // With zeros to start from, a tile without live K tiles needs no case of its own.
      typename Mainloop::Accumulators acc{};
      auto const place = Mainloop::place_of(tile);
      mainloop.multiply(tile.k_tiles, place.has_slot(), acc);
      if constexpr (Traits::kSplits) {
        if (!Partials<Config>::add_up(params.scheduler.sums, acc)) {
          break;
        }
      }
      tile = scheduler.next();
      if (tile.k_tiles != kNoMoreTiles) {
        mainloop.begin(tile, by.k_tiles_of(tile));
      }
      Epilogue<Traits>::store(params.epilogue, place, acc);
    }
    zero_fill.pass_rest();
    let_next_launch_start();
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Config::kThreads, Traits::Config::kCtasPerSm)
    matmul_kernel(__grid_constant__ KernelParams<Traits> const params) {
  extern __shared__ __align__(1024) char smem[];
  Kernel<Traits>::run(params, smem);
}

}  // namespace sparsedrop::sm80
