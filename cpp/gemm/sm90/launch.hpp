// One orientation of a problem -> kernel parameters -> a launch.

#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "common/overlap.hpp"
#include "gemm/product.hpp"
#include "gemm/sm90/kernel.hpp"

namespace sparsedrop {

template <Major M>
auto stride_of(int64_t ld) {
  if constexpr (M == Major::MN) {
    return cute::make_stride(cute::_1{}, ld);
  } else {
    return cute::make_stride(ld, cute::_1{});
  }
}

template <class Traits>
KernelParams<Traits> make_params(Product const& product, TileList const& list, int32_t ctas) {
  using Config = typename Traits::Config;
  using Element = typename Traits::Element;
  using Layouts = typename Traits::Layouts;
  auto const m = int32_t(product.m);
  auto const n = int32_t(product.n);
  auto const k = int32_t(product.k);
  typename Mainloop<Traits>::Arguments const mainloop{static_cast<Element const*>(product.a.data),
                                                      stride_of<Layouts::kA>(product.a.ld),
                                                      static_cast<Element const*>(product.b.data),
                                                      stride_of<Layouts::kB>(product.b.ld),
                                                      m,
                                                      n,
                                                      k,
                                                      product.a_lines,
                                                      product.b_lines};
  typename Epilogue<Traits>::Arguments const epilogue{static_cast<Element*>(product.d),
                                                      static_cast<Element*>(product.pre_activation),
                                                      stride_of<Layouts::kD>(product.d_ld),
                                                      m,
                                                      n,
                                                      static_cast<Element const*>(product.bias),
                                                      product.alpha,
                                                      product.activation};
  FullGrid const grid =
      full_grid(product.m, product.n, product.k, Config::kTile, block_of(product.b_lines));
  bool const has_other_masks = product.a_lines.words != nullptr || product.b_lines.words != nullptr;
  typename ZeroFill<Traits>::Params const zero_fill{
      static_cast<Element*>(product.d), product.d_ld, m, n,
      ZeroFill<Traits>::pace(grid.k_tiles, has_other_masks)};
  bool const splits = product.sums.parts > 1;
  constexpr bool kParallelSlots = Config::kGroupSlots < Config::kSlots;
  bool const one_wave =
      splits || (list.records == nullptr &&
                 Ordering::has_one_wave(product.d_lines, grid, ctas, kParallelSlots));
  NarrowLines narrow;
  if (one_wave && !splits) {
    narrow = Ordering::narrow_lines(product.a_lines, product.d_lines, grid, ctas, kParallelSlots);
  }
  FullGrid const others = grid.of_lines(grid.lines - narrow.lines);
  Ordering const ordering{product.a_lines,
                          product.b_lines,
                          product.d_lines,
                          grid,
                          narrow,
                          others,
                          others.records(splits ? 1 : std::max(ctas - narrow.count(), 1)),
                          Config::kM,
                          Config::kSlotN,
                          SlotBits::of(Config::kSlotN, kMaskUnit),
                          ctas,
                          one_wave,
                          one_wave && (narrow.lines == 0 || narrow.lines == grid.lines)};
  return {Mainloop<Traits>::to_underlying_arguments(mainloop),
          Epilogue<Traits>::to_underlying_arguments(epilogue),
          zero_fill,
          ordering,
          list,
          product.sums};
}

template <class Traits>
constexpr size_t kStorageBytes = sizeof(typename Kernel<Traits>::SharedStorage);

// Each GPU is told once, if it is one of the first 64. Where a reset has made it forget, the launch
// reports an error.
template <class Traits>
cudaError_t allow_shared_memory() {
  static std::atomic<uint64_t> told{0};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  uint64_t const bit = device < 64 ? uint64_t(1) << device : 0;
  if (status == cudaSuccess && (told.load(std::memory_order_relaxed) & bit) == 0) {
    status = cudaFuncSetAttribute(reinterpret_cast<void const*>(&matmul_kernel<Traits>),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(kStorageBytes<Traits>));
    told.fetch_or(status == cudaSuccess ? bit : 0, std::memory_order_relaxed);
  }
  return status;
}

template <class Traits>
cudaError_t launch(Product const& product, TileList const& list, int32_t ctas,
                   cudaStream_t stream) {
  if (find_encode_tiled() == nullptr) {
    return cudaErrorNotSupported;
  }
  cudaError_t const status = allow_shared_memory<Traits>();
  if (status != cudaSuccess) {
    return status;
  }
  LaunchShape const shape{unsigned(ctas), Traits::kThreads, kStorageBytes<Traits>, stream};
  return launch_overlapped(&matmul_kernel<Traits>, shape, make_params<Traits>(product, list, ctas));
}

template <Variant kVariant>
using Is = std::integral_constant<Variant, kVariant>;

constexpr Major major_of(bool is_contiguous) { return is_contiguous ? Major::K : Major::MN; }

// Walks the list of configs for the one of this id.
template <class Element, bool AKMajor, bool BKMajor, bool NMajor>
cudaError_t launch_tile(int tile, Product const& product, TileList const& list, int32_t ctas,
                        cudaStream_t stream) {
  using ThisLayouts = Layouts<major_of(AKMajor), major_of(BKMajor), major_of(NMajor)>;
  cudaError_t status = cudaErrorInvalidValue;
  int id = 0;
  cute::for_each(TileConfigs{}, [&](auto config) {
    if (id++ == tile) {
      using Config = decltype(config);
      auto const run = [&](auto variant) {
        return launch<Traits<Element, Config, ThisLayouts, decltype(variant)::value>>(product, list,
                                                                                      ctas, stream);
      };
      if (product.sums.parts > 1) {
        if constexpr (Config::kCanSplit) {
          status = run(Is<Variant::splits>{});
        }
      } else {
        status = product.activation == Activation::none ? run(Is<Variant::plain>{})
                                                        : run(Is<Variant::activates>{});
      }
    }
  });
  return status;
}

}  // namespace sparsedrop
