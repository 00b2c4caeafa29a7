// The activations, in fp32 and by torch's formulae: gelu is the exact one. The exponential and the
// division are the fast ones, whose errors a 16-bit result does not show, but where silu is below
// 1e-36: then it is 0. A NaN stays a NaN.

#pragma once

#include <cute/tensor.hpp>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

constexpr float kSqrtHalf = 0.70710678118654752f;

CUTLASS_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

CUTLASS_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * kSqrtHalf)); }

CUTLASS_DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// In place. The switch is outside of the loops: inside, every element would carry every branch.
template <class Values>
CUTLASS_DEVICE void activate(Activation activation, Values& values) {
  if (activation == Activation::relu) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < cute::size(values); ++i) {
      values(i) = relu(values(i));
    }
  } else if (activation == Activation::gelu) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < cute::size(values); ++i) {
      values(i) = gelu(values(i));
    }
  } else if (activation == Activation::silu) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < cute::size(values); ++i) {
      values(i) = silu(values(i));
    }
  }
}

}  // namespace sparsedrop
