// The activations and their gradients, in fp32 and by torch's formulae: gelu is the exact one. The
// exponential and the division are the fast ones, whose errors no 16-bit result shows. A NaN stays
// a NaN.

#pragma once

namespace sparsedrop {

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kNormalPeak = 0.39894228040143268f;  // the normal distribution's density at 0

__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * kSqrtHalf)); }

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Gradients: what comes from above, and what went into the activation.

__device__ __forceinline__ float relu_grad(float upstream, float x) {
  return x <= 0.0f ? 0.0f : upstream;
}

__device__ __forceinline__ float gelu_grad(float upstream, float x) {
  float const share = 0.5f * (1.0f + erff(x * kSqrtHalf));
  return upstream * (share + x * (kNormalPeak * __expf(-0.5f * x * x)));
}

__device__ __forceinline__ float silu_grad(float upstream, float x) {
  float const share = __fdividef(1.0f, 1.0f + __expf(-x));
  return upstream * share * (1.0f + x * (1.0f - share));
}

}  // namespace sparsedrop
