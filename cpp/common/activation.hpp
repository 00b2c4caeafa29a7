// The activations of one value, in fp32 and by torch's formulae. The exponential and the division
// are the fast ones, whose errors a 16-bit result does not show, but where silu and gelu_tanh are
// below 1e-36: then they are 0. A NaN stays a NaN.

#pragma once

#include "common/host_device.hpp"

namespace sparsedrop {

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kHalfDensityAtZero = 0.39894228040143268f;  // 1 / sqrt(2 pi)
constexpr float kTanhScale = 0.79788456080286536f;          // sqrt(2 / pi)
constexpr float kTanhCube = 0.044715f;

SPARSEDROP_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

SPARSEDROP_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * kSqrtHalf)); }

SPARSEDROP_DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

SPARSEDROP_DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What tanh is taken of, twice: x (1 + tanh(y)) / 2 = x sigmoid(2 y).
SPARSEDROP_DEVICE float gelu_tanh_argument(float x) {
  return 2.0f * kTanhScale * (x + kTanhCube * x * x * x);
}

SPARSEDROP_DEVICE float gelu_tanh(float x) {
  return __fdividef(x, 1.0f + __expf(-gelu_tanh_argument(x)));
}

// Also of relu's result.
SPARSEDROP_DEVICE float relu_slope(float x) { return x <= 0.0f ? 0.0f : 1.0f; }

SPARSEDROP_DEVICE float gelu_slope(float x) {
  float const share = 0.5f * (1.0f + erff(x * kSqrtHalf));
  return share + x * kHalfDensityAtZero * __expf(-0.5f * x * x);
}

SPARSEDROP_DEVICE float silu_slope(float x) {
  float const share = sigmoid(x);
  return share * (1.0f + x * (1.0f - share));
}

SPARSEDROP_DEVICE float gelu_tanh_slope(float x) {
  float const share = sigmoid(gelu_tanh_argument(x));
  float const inner = 2.0f * kTanhScale * (1.0f + 3.0f * kTanhCube * x * x);
  return share * (1.0f + x * (1.0f - share) * inner);
}

}  // namespace sparsedrop
