// The kernels of 8.0: their tiles, and the way to the instance that runs a product.

#include "gemm/architecture.hpp"

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include "gemm/sm80/config.hpp"
#include "gemm/sm80/instance.hpp"

namespace sparsedrop::sm80 {
namespace {

template <class... Configs>
struct Listed {
  static constexpr int kCount = sizeof...(Configs);
  static constexpr KernelTile kTiles[] = {{Configs::kTile, Configs::kHasParallelSlots}...};

  static Residency residency(int tile, Gpu const& gpu, int64_t ctas) {
    using Function = Residency (*)(Gpu const&, int64_t);
    constexpr Function kFunctions[] = {&residency_of<Configs>...};
    return kFunctions[tile](gpu, ctas);
  }
};

template <class... Configs>
Listed<Configs...> listed(ConfigList<Configs...>);

using Tiles = decltype(listed(TileConfigs{}));

// Machine code of 8.0 runs on 8.x; on later ones its PTX does.
bool runs_on(int major, int) { return major >= 8; }

int32_t ctas_per_sm(int tile, Gpu const& gpu, int64_t records) {
  return Tiles::residency(tile, gpu, records).ctas_per_sm;
}

// Calls launch_tile<Element, AKMajor, BKMajor> with the product's own values.
template <class Element>
cudaError_t dispatch_layout(int tile, Product const& product, Schedule const& schedule,
                            cudaStream_t stream) {
  auto const launch = product.a.k_major ? (product.b.k_major ? &launch_tile<Element, true, true>
                                                             : &launch_tile<Element, true, false>)
                                        : (product.b.k_major ? &launch_tile<Element, false, true>
                                                             : &launch_tile<Element, false, false>);
  return launch(tile, product, schedule, stream);
}

cudaError_t dispatch(int tile, Product const& product, Schedule const& schedule,
                     cudaStream_t stream) {
  switch (product.dtype) {
    case DataType::bf16:
      return dispatch_layout<cutlass::bfloat16_t>(tile, product, schedule, stream);
    case DataType::fp16:
      return dispatch_layout<cutlass::half_t>(tile, product, schedule, stream);
    case DataType::fp32:
      return dispatch_layout<float>(tile, product, schedule, stream);
    case DataType::fp64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

constexpr Kernels kKernels{Architecture::sm80,  "sm80",         &runs_on,
                           kOverlaps,           kPartialGroups, kLimits,
                           Tiles::kTiles,       Tiles::kCount,  &ctas_per_sm,
                           /*takes_fp32=*/true, &dispatch};

}  // namespace sparsedrop::sm80
