// The gradient of an activation, and the sums of its columns: the gradient of the bias before it.

#include "activation.hpp"
#include "reduce/columns.hpp"

namespace sparsedrop {
namespace {

template <class Element_, Activation kActivation>
struct Gradient {
  using Element = Element_;
  static constexpr int kMatrices = 2;

  Element const* upstream;
  int64_t upstream_ld;
  Element const* before;
  int64_t before_ld;
  Element* grad;
  int64_t grad_ld;

  __device__ Element const* vector(int matrix, int64_t row, int64_t col) const {
    return matrix == 0 ? upstream + row * upstream_ld + col : before + row * before_ld + col;
  }

  // Stores the gradient; as it was rounded, it is summed.
  __device__ void take(uint4 const (&read)[kMatrices], int64_t row, int64_t col,
                       float (&values)[kVector]) const {
    auto const* const above = reinterpret_cast<Element const*>(&read[0]);
    auto const* const x = reinterpret_cast<Element const*>(&read[1]);
    uint4 written;
    auto* const rounded = reinterpret_cast<Element*>(&written);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      store(of(to_float(above[v]), to_float(x[v])), &rounded[v]);
      values[v] = to_float(rounded[v]);
    }
    *reinterpret_cast<uint4*>(grad + row * grad_ld + col) = written;
  }

  __device__ static float of(float above, float x) {
    if constexpr (kActivation == Activation::relu) {
      return relu_grad(above, x);
    } else if constexpr (kActivation == Activation::gelu) {
      return gelu_grad(above, x);
    } else {
      return silu_grad(above, x);
    }
  }
};

template <class Element, Activation kActivation>
cudaError_t launch(ActivationGrad const& request, cudaStream_t stream) {
  Gradient<Element, kActivation> const gradient{static_cast<Element const*>(request.upstream.data),
                                                request.upstream.ld,
                                                static_cast<Element const*>(request.before.data),
                                                request.before.ld,
                                                static_cast<Element*>(request.grad),
                                                request.grad_ld};
  return launch_columns(gradient, request.rows, request.cols, request.mask, request.sums, stream);
}

template <class Element>
cudaError_t dispatch(ActivationGrad const& request, cudaStream_t stream) {
  switch (request.activation) {
    case Activation::none:
      return cudaErrorInvalidValue;
    case Activation::relu:
      return launch<Element, Activation::relu>(request, stream);
    case Activation::gelu:
      return launch<Element, Activation::gelu>(request, stream);
    case Activation::silu:
      return launch<Element, Activation::silu>(request, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t activation_grad(ActivationGrad const& request, cudaStream_t stream) {
  Matrix const grad{request.grad, request.grad_ld, Order::row_major};
  if (!has_vectors(request.upstream) || !has_vectors(request.before) || !has_vectors(grad) ||
      request.grad_ld < request.cols) {
    return cudaErrorInvalidValue;
  }
  switch (request.dtype) {
    case DataType::bf16:
      return dispatch<__nv_bfloat16>(request, stream);
    case DataType::fp16:
      return dispatch<__half>(request, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
