// The activation of a tile of accumulators.

#pragma once

#include <cute/tensor.hpp>

#include "common/activation.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// In place. The switch is outside of the loops: inside, every element would carry every branch.
template <class Values>
CUTLASS_DEVICE void activate(Activation activation, Values& values) {
  auto const each = [&](auto const& act) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < cute::size(values); ++i) {
      values(i) = act(values(i));
    }
  };
  if (activation == Activation::relu) {
    each([](float x) { return relu(x); });
  } else if (activation == Activation::gelu) {
    each([](float x) { return gelu(x); });
  } else if (activation == Activation::silu) {
    each([](float x) { return silu(x); });
  } else if (activation == Activation::gelu_tanh) {
    each([](float x) { return gelu_tanh(x); });
  }
}

}  // namespace sparsedrop
