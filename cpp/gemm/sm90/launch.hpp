// A product and its schedule -> kernel parameters -> a launch.

#pragma once

#include "gemm/sm90/kernel.hpp"

#include <type_traits>

#include "common/device_bits.hpp"
#include "gemm/sm90/instance.hpp"

namespace sparsedrop::sm90 {

template <Major M>
auto stride_of(int64_t ld) {
  if constexpr (M == Major::MN) {
    return cute::make_stride(cute::_1{}, ld);
  } else {
    return cute::make_stride(ld, cute::_1{});
  }
}

template <class Traits>
auto epilogue_arguments(Product const& product) {
  using Element = typename Traits::Element;
  auto const m = int32_t(product.m);
  auto const n = int32_t(product.n);
  if constexpr (Traits::kIsWide) {
    return typename WideEpilogue<Traits>::Arguments{
        static_cast<float*>(product.d), product.d_ld, m, n, product.alpha, product.accumulates};
  } else {
    return typename Epilogue<Traits>::Arguments{static_cast<Element*>(product.d),
                                                static_cast<Element*>(product.pre_activation),
                                                stride_of<Traits::Layouts::kD>(product.d_ld),
                                                m,
                                                n,
                                                static_cast<Element const*>(product.bias),
                                                product.alpha,
                                                product.activation};
  }
}

template <class Traits>
KernelParams<Traits> make_params(Product const& product, Schedule const& schedule) {
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
                                                      k};
  bool const has_other_masks = product.a_lines.exists() || product.b_lines.exists();
  typename ZeroFill<Traits>::Params const zero_fill{
      static_cast<Element*>(product.d), product.d_ld, m, n,
      ZeroFill<Traits>::pace(int32_t(ceil_div(product.k, Traits::Config::kK)), has_other_masks)};
  return {Mainloop<Traits>::to_underlying_arguments(mainloop),
          EpilogueOf<Traits>::to_underlying_arguments(epilogue_arguments<Traits>(product)),
          zero_fill, TileScheduler<Traits>::to_underlying_arguments(schedule)};
}

template <class Traits>
constexpr size_t kStorageBytes = sizeof(typename Kernel<Traits>::SharedStorage);

// Each GPU is told once, if it is one of the first 64. Where a reset has made it forget, the launch
// reports an error.
template <class Traits>
cudaError_t allow_shared_memory(int device) {
  static DeviceBits told;
  if (told.has(device)) {
    return cudaSuccess;
  }
  cudaError_t const status =
      cudaFuncSetAttribute(reinterpret_cast<void const*>(&matmul_kernel<Traits>),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, int(kStorageBytes<Traits>));
  if (status == cudaSuccess) {
    told.add(device);
  }
  return status;
}

template <class Traits>
cudaError_t launch_kernel(Product const& product, Schedule const& schedule, cudaStream_t stream) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = bind_context(device);
  }
  if (status == cudaSuccess) {
    status = allow_shared_memory<Traits>(device);
  }
  if (status != cudaSuccess) {
    return status;
  }
  encoding_status() = CUDA_SUCCESS;
  KernelParams<Traits> const params = make_params<Traits>(product, schedule);
  if (encoding_status() != CUDA_SUCCESS) {
    return encoding_status() == CUDA_ERROR_NOT_FOUND ? cudaErrorNotSupported
                                                     : cudaErrorInvalidValue;
  }
  LaunchShape const shape{unsigned(schedule.ctas), Traits::kThreads, kStorageBytes<Traits>, stream,
                          kOverlaps};
  return launch(&matmul_kernel<Traits>, shape, params);
}

template <Variant kVariant>
using Is = std::integral_constant<Variant, kVariant>;

constexpr Major major_of(bool is_contiguous) { return is_contiguous ? Major::K : Major::MN; }

// Walks the list of configs for the one of this id.
template <class Element, bool AKMajor, bool BKMajor, bool NMajor>
cudaError_t launch_tile(int tile, Product const& product, Schedule const& schedule,
                        cudaStream_t stream) {
  using ThisLayouts = Layouts<major_of(AKMajor), major_of(BKMajor), major_of(NMajor)>;
  cudaError_t status = cudaErrorInvalidValue;
  int id = 0;
  cute::for_each(TileConfigs{}, [&](auto config) {
    if (id++ == tile) {
      using Config = decltype(config);
      auto const run = [&](auto variant) {
        return launch_kernel<Traits<Element, Config, ThisLayouts, decltype(variant)::value>>(
            product, schedule, stream);
      };
      auto const run_whole_or_split = [&](auto whole, auto split) {
        if (schedule.sums.split_k == 1) {
          return run(whole);
        }
        if constexpr (Config::kCanSplit) {
          return run(split);
        } else {
          return cudaErrorInvalidValue;
        }
      };
      if (product.d_is_fp32) {
        if constexpr (ThisLayouts::kMayBeWide) {
          status = run_whole_or_split(Is<Variant::wide>{}, Is<Variant::wide_split_k>{});
        }
      } else if (product.activation != Activation::none) {
        status = run(Is<Variant::activates>{});
      } else {
        status = run_whole_or_split(Is<Variant::plain>{}, Is<Variant::split_k>{});
      }
    }
  });
  return status;
}

}  // namespace sparsedrop::sm90
