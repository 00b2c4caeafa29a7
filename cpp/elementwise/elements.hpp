// Element types of matrices, and a few neighbouring elements that are loaded and stored at once.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "common/host_device.hpp"

namespace sparsedrop {

template <class Element>
using Accumulator = std::conditional_t<std::is_same_v<Element, double>, double, float>;

SPARSEDROP_DEVICE float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
SPARSEDROP_DEVICE float widened(__half value) { return __half2float(value); }
SPARSEDROP_DEVICE float widened(float value) { return value; }
SPARSEDROP_DEVICE double widened(double value) { return value; }

template <class Element>
SPARSEDROP_DEVICE Element rounded(Accumulator<Element> value) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return __float2bfloat16(value);
  } else if constexpr (std::is_same_v<Element, __half>) {
    return __float2half(value);
  } else {
    return value;
  }
}

template <class Element, int kCount>
struct alignas(sizeof(Element) * kCount) Vector {
  Element element[kCount];
};

}  // namespace sparsedrop
