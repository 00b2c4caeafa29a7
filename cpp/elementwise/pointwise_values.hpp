// What a thread of `pointwise` does with the elements of one vector.

#pragma once

#include "common/activation.hpp"
#include "elementwise/elements.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop::pointwise_values {

constexpr int kVector = 8;  // elements of 16 bytes

struct Values {
  float a[kVector];
  float b[kVector];
  float grad[kVector];
};

struct Results {
  float out[kVector];
  float out_b[kVector];
};

constexpr bool reads_b(PointwiseKind kind) {
  return kind == PointwiseKind::gate || kind == PointwiseKind::gate_grad ||
         kind == PointwiseKind::add;
}

constexpr bool reads_grad(PointwiseKind kind) {
  return kind == PointwiseKind::activation_grad || kind == PointwiseKind::gate_grad;
}

template <PointwiseKind kKind, class Act, class Slope>
__device__ void compute(Values const& in, Results& found, Act const& act, Slope const& slope) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    if constexpr (kKind == PointwiseKind::activate) {
      found.out[v] = act(in.a[v]);
    } else if constexpr (kKind == PointwiseKind::activation_grad) {
      found.out[v] = in.grad[v] * slope(in.a[v]);
    } else if constexpr (kKind == PointwiseKind::gate) {
      found.out[v] = act(in.a[v]) * in.b[v];
    } else if constexpr (kKind == PointwiseKind::gate_grad) {
      found.out[v] = in.grad[v] * in.b[v] * slope(in.a[v]);
      found.out_b[v] = in.grad[v] * act(in.a[v]);
    } else {
      found.out[v] = in.a[v] + in.b[v];
    }
  }
}

// The switch is outside of all loops.
template <class Then>
__device__ void with_activation(Activation activation, Then const& then) {
  switch (activation) {
    case Activation::none:
      then([](float x) { return x; }, [](float) { return 1.0f; });
      break;
    case Activation::relu:
      then([](float x) { return relu(x); }, [](float x) { return relu_slope(x); });
      break;
    case Activation::gelu:
      then([](float x) { return gelu(x); }, [](float x) { return gelu_slope(x); });
      break;
    case Activation::silu:
      then([](float x) { return silu(x); }, [](float x) { return silu_slope(x); });
      break;
    case Activation::gelu_tanh:
      then([](float x) { return gelu_tanh(x); }, [](float x) { return gelu_tanh_slope(x); });
      break;
  }
}

template <class Element>
__device__ void widen(Vector<Element, kVector> const& from, float (&to)[kVector]) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    to[v] = widened(from.element[v]);
  }
}

template <class Element>
__device__ void store(float const (&from)[kVector], Element* to) {
  Vector<Element, kVector> written;
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    written.element[v] = rounded<Element>(from[v]);
  }
  *reinterpret_cast<Vector<Element, kVector>*>(to) = written;
}

}  // namespace sparsedrop::pointwise_values
