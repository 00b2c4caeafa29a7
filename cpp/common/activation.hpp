// The activations of one value, in fp32. The exponential and the division are the fast ones, and
// gelu's share is off by 4e-6 of itself: errors that a 16-bit result does not show. silu and
// gelu_tanh are 0 where they are below 1e-36. A NaN stays a NaN.

#pragma once

#include "common/host_device.hpp"

namespace sparsedrop {

constexpr float kHalfDensityAtZero = 0.39894228040143268f;  // 1 / sqrt(2 pi)
constexpr float kTanhScale = 0.79788456080286536f;          // sqrt(2 / pi)
constexpr float kTanhCube = 0.044715f;

SPARSEDROP_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

struct NormalAt {
  float below;  // the share of a normal distribution below x
  float bell;   // exp(-x^2 / 2)
};

// The tail beyond |x| is bell t P(t) with t = 1 / (1 + 0.28 |x|): P is the polynomial of degree 6
// with the least relative error. erff takes twice the instructions, and more where lanes differ.
SPARSEDROP_DEVICE NormalAt normal_at(float x) {
  float const t = __fdividef(1.0f, 1.0f + 0.28f * fabsf(x));
  float const bell = __expf(-0.5f * x * x);
  float sum = -0.050231127f;
  sum = sum * t + 0.105443186f;
  sum = sum * t + 0.0249498665f;
  sum = sum * t + 0.0944559798f;
  sum = sum * t + 0.101935744f;
  sum = sum * t + 0.111740665f;
  sum = sum * t + 0.111703844f;
  float const tail = bell * (t * sum);
  return {x < 0.0f ? tail : 1.0f - tail, bell};
}

SPARSEDROP_DEVICE float gelu(float x) { return x * normal_at(x).below; }

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
  NormalAt const at = normal_at(x);
  return at.below + x * kHalfDensityAtZero * at.bell;
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
