// The kernels of sm_90a: their tiles, and the way to the instance that runs a product.

#include "gemm/architecture.hpp"
#include "gemm/sm90/config.hpp"
#include "gemm/sm90/instance.hpp"

namespace sparsedrop::sm90 {
namespace {

constexpr int kTiles = cute::tuple_size_v<TileConfigs>;

template <size_t... I>
constexpr auto list_tiles(cute::index_sequence<I...>) {
  return cute::array<KernelTile, kTiles>{
      {KernelTile{cute::tuple_element_t<I, TileConfigs>::kTile,
                  cute::tuple_element_t<I, TileConfigs>::kHasParallelSlots}...}};
}

constexpr auto kTileList = list_tiles(cute::make_index_sequence<kTiles>{});

// Machine code of sm_90a runs on exactly that capability.
bool runs_on(int major, int minor) { return major == 9 && minor == 0; }

// A CTA takes all registers of an SM.
int32_t ctas_per_sm(int, Gpu const&, int64_t) { return 1; }

// Calls launch_tile<Element, AKMajor, BKMajor, NMajor> with the product's own values.
template <class Element, bool... Known>
cudaError_t dispatch_layout(int tile, Product const& product, Schedule const& schedule,
                            cudaStream_t stream) {
  if constexpr (sizeof...(Known) == 3) {
    return launch_tile<Element, Known...>(tile, product, schedule, stream);
  } else {
    bool const values[] = {product.a.k_major, product.b.k_major, product.n_major};
    return values[sizeof...(Known)]
               ? dispatch_layout<Element, Known..., true>(tile, product, schedule, stream)
               : dispatch_layout<Element, Known..., false>(tile, product, schedule, stream);
  }
}

cudaError_t dispatch(int tile, Product const& product, Schedule const& schedule,
                     cudaStream_t stream) {
  switch (product.dtype) {
    case DataType::bf16:
      return dispatch_layout<cutlass::bfloat16_t>(tile, product, schedule, stream);
    case DataType::fp16:
      return dispatch_layout<cutlass::half_t>(tile, product, schedule, stream);
    case DataType::fp32:
    case DataType::fp64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

constexpr Kernels kKernels{Architecture::sm90,   "sm90",   &runs_on,         kOverlaps,
                           kConsumerWarpGroups,  kLimits,  kTileList.data(), kTiles,
                           &ctas_per_sm,
                           /*takes_fp32=*/false, &dispatch};

}  // namespace sparsedrop::sm90
