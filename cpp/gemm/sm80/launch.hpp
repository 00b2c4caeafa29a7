// A product and its schedule -> kernel parameters -> a launch.

#pragma once

#include "gemm/sm80/kernel.hpp"

#include "common/device_bits.hpp"
#include "common/gpu.hpp"
#include "gemm/sm80/instance.hpp"

namespace sparsedrop::sm80 {

template <class Traits>
KernelParams<Traits> make_params(Product const& product, Schedule const& schedule, int32_t stages) {
  using Element = typename Traits::Element;
  using Result = typename Traits::Result;
  auto const m = int32_t(product.m);
  auto const n = int32_t(product.n);
  auto const k = int32_t(product.k);
  auto* const d = static_cast<Result*>(product.d);
  return {{{static_cast<Element const*>(product.a.data), product.a.ld, m, k},
           {static_cast<Element const*>(product.b.data), product.b.ld, n, k}},
          {d, static_cast<Result*>(product.pre_activation), product.d_ld, m, n, product.n_major,
           product.accumulates, static_cast<Element const*>(product.bias), product.alpha,
           product.activation},
          {product.d_lines.exists() ? d : nullptr, product.d_ld, m, n, product.n_major},
          TileScheduler<Traits>::to_underlying_arguments(schedule),
          stages};
}

// Each GPU is told once, if it is one of the first 64, how much its CTAs may have, and that caches
// get what is left. Where a reset has made it forget, the launch reports an error.
template <class Traits>
cudaError_t allow_shared_memory(int32_t bytes) {
  static DeviceBits told;
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess || told.has(device)) {
    return status;
  }
  auto const kernel = reinterpret_cast<void const*>(&matmul_kernel<Traits>);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared);
  }
  if (status == cudaSuccess) {
    told.add(device);
  }
  return status;
}

template <class Traits>
cudaError_t launch_kernel(Product const& product, Schedule const& schedule, cudaStream_t stream) {
  using Config = typename Traits::Config;
  Gpu gpu{};
  cudaError_t status = read_gpu(&gpu);
  if (status == cudaSuccess) {
    status = allow_shared_memory<Traits>(gpu.shared_per_cta);
  }
  if (status != cudaSuccess) {
    return status;
  }
  constexpr auto kOtherBytes = int32_t(sizeof(typename Kernel<Traits>::SharedStorage));
  static_assert(kOtherBytes == kSchedulerBytes, "architecture.cu counts with it");
  int32_t const stages = residency_of<Config>(gpu, schedule.ctas).stages;
  if (stages < kMinStages) {
    return cudaErrorNotSupported;
  }
  LaunchShape const shape{unsigned(schedule.ctas), Config::kThreads,
                          size_t(kOtherBytes + stages * Config::kStageBytes), stream, kOverlaps};
  return launch(&matmul_kernel<Traits>, shape, make_params<Traits>(product, schedule, stages));
}

template <Variant kVariant>
using Is = std::integral_constant<Variant, kVariant>;

// Walks the list of configs for the one of this id.
template <class Element, bool AKMajor, bool BKMajor, class... Configs>
cudaError_t launch_config(ConfigList<Configs...>, int tile, Product const& product,
                          Schedule const& schedule, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  int id = 0;
  auto const run = [&](auto config) {
    using Config = decltype(config);
    if (id++ != tile) {
      return;
    }
    constexpr bool kMayBeWide = !AKMajor && !BKMajor && !std::is_same<Element, float>::value;
    auto const launch_as = [&](auto variant) {
      return launch_kernel<sm80::Traits<Element, Config, AKMajor, BKMajor, variant()>>(
          product, schedule, stream);
    };
    auto const launch_whole_or_split = [&](auto whole, auto split) {
      if (schedule.sums.split_k == 1) {
        return launch_as(whole);
      }
      if constexpr (Config::kCanSplit) {
        return launch_as(split);
      } else {
        return cudaErrorInvalidValue;
      }
    };
    if (product.d_is_fp32 && !std::is_same<Element, float>::value) {
      if constexpr (kMayBeWide) {
        status = launch_whole_or_split(Is<Variant::wide>{}, Is<Variant::wide_split_k>{});
      }
    } else if (product.activation != Activation::none) {
      status = launch_as(Is<Variant::activates>{});
    } else {
      status = launch_whole_or_split(Is<Variant::plain>{}, Is<Variant::split_k>{});
    }
  };
  (run(Configs{}), ...);
  return status;
}

template <class Element, bool AKMajor, bool BKMajor>
cudaError_t launch_tile(int tile, Product const& product, Schedule const& schedule,
                        cudaStream_t stream) {
  return launch_config<Element, AKMajor, BKMajor>(TileConfigs{}, tile, product, schedule, stream);
}

}  // namespace sparsedrop::sm80
