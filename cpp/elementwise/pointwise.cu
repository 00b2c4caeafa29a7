// What a feed-forward block does between its products, in the live blocks of its hidden matrices.

#include <algorithm>
#include <cstdint>

#include "common/activation.hpp"
#include "common/divisor.hpp"
#include "elementwise/elements.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kVector = 8;         // elements of 16 bytes
constexpr int kRowsAtOnce = 8;     // by one CTA, a warp each
constexpr int kRowsPerThread = 2;  // whose loads are under way together
constexpr unsigned kMaxGridRows = 65535;

template <class Element>
struct Params {
  Element const* a;
  Element const* b;
  Element const* grad;
  Element* out;
  Element* out_b;
  int32_t rows;
  int32_t cols;
  Divisor block_rows;
  Divisor block_cols;
  uint8_t const* live;
  int32_t grid_cols;
  Activation activation;
};

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

// The switch is outside of the loops over a vector.
template <PointwiseKind kKind>
__device__ void compute(Activation activation, Values const& in, Results& found) {
  switch (activation) {
    case Activation::none:
      compute<kKind>(in, found, [](float x) { return x; }, [](float) { return 1.0f; });
      break;
    case Activation::relu:
      compute<kKind>(
          in, found, [](float x) { return relu(x); }, [](float x) { return relu_slope(x); });
      break;
    case Activation::gelu:
      compute<kKind>(
          in, found, [](float x) { return gelu(x); }, [](float x) { return gelu_slope(x); });
      break;
    case Activation::silu:
      compute<kKind>(
          in, found, [](float x) { return silu(x); }, [](float x) { return silu_slope(x); });
      break;
    case Activation::gelu_tanh:
      compute<kKind>(
          in, found, [](float x) { return gelu_tanh(x); },
          [](float x) { return gelu_tanh_slope(x); });
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

template <PointwiseKind kKind, class Element>
__global__ void __launch_bounds__(kWarp* kRowsAtOnce) pointwise_kernel(Params<Element> const p) {
  using Loaded = Vector<Element, kVector>;
  int64_t const first_col = (int64_t(blockIdx.x) * kWarp + threadIdx.x) * kVector;
  if (first_col >= p.cols) {
    return;
  }
  auto const col = int32_t(first_col);
  int32_t const block_col = col / p.block_cols;
  constexpr int64_t kStep = kRowsAtOnce * kRowsPerThread;
  for (int64_t top = blockIdx.y * kStep + threadIdx.y; top < p.rows; top += gridDim.y * kStep) {
    Loaded a[kRowsPerThread] = {};
    Loaded b[kRowsPerThread] = {};
    Loaded grad[kRowsPerThread] = {};
    bool is_live[kRowsPerThread] = {};
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      int64_t const row = top + i * kRowsAtOnce;
      int64_t const at = row * p.cols + col;
      is_live[i] = row < p.rows &&
                   (p.live == nullptr ||
                    p.live[int64_t(int32_t(row) / p.block_rows) * p.grid_cols + block_col] != 0);
      if (is_live[i]) {
        a[i] = *reinterpret_cast<Loaded const*>(p.a + at);
        if constexpr (reads_b(kKind)) {
          b[i] = *reinterpret_cast<Loaded const*>(p.b + at);
        }
        if constexpr (reads_grad(kKind)) {
          grad[i] = *reinterpret_cast<Loaded const*>(p.grad + at);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (is_live[i]) {
        int64_t const at = (top + i * kRowsAtOnce) * p.cols + col;
        Values in;
        Results found;
        widen(a[i], in.a);
        widen(b[i], in.b);
        widen(grad[i], in.grad);
        compute<kKind>(p.activation, in, found);
        store(found.out, p.out + at);
        if constexpr (kKind == PointwiseKind::gate_grad) {
          store(found.out_b, p.out_b + at);
        }
      }
    }
  }
}

template <PointwiseKind kKind, class Element>
cudaError_t launch(Pointwise const& call, cudaStream_t stream) {
  Blocking const& of = call.blocking;
  Params<Element> const params{static_cast<Element const*>(call.a),
                               static_cast<Element const*>(call.b),
                               static_cast<Element const*>(call.grad),
                               static_cast<Element*>(call.out),
                               static_cast<Element*>(call.out_b),
                               int32_t(of.rows),
                               int32_t(of.cols),
                               of.block_rows,
                               of.block_cols,
                               call.live,
                               int32_t(ceil_div(of.cols, of.block_cols)),
                               call.activation};
  auto const across = unsigned(ceil_div(of.cols, kWarp * kVector));
  auto const down =
      unsigned(std::min<int64_t>(ceil_div(of.rows, kRowsAtOnce * kRowsPerThread), kMaxGridRows));
  pointwise_kernel<kKind, Element>
      <<<dim3(across, down), dim3(kWarp, kRowsAtOnce), 0, stream>>>(params);
  return cudaGetLastError();
}

template <class Element>
cudaError_t run(Pointwise const& call, cudaStream_t stream) {
  switch (call.kind) {
    case PointwiseKind::activate:
      return launch<PointwiseKind::activate, Element>(call, stream);
    case PointwiseKind::activation_grad:
      return launch<PointwiseKind::activation_grad, Element>(call, stream);
    case PointwiseKind::gate:
      return launch<PointwiseKind::gate, Element>(call, stream);
    case PointwiseKind::gate_grad:
      return launch<PointwiseKind::gate_grad, Element>(call, stream);
    case PointwiseKind::add:
      return launch<PointwiseKind::add, Element>(call, stream);
  }
  return cudaErrorInvalidValue;
}

bool lies_well(void const* data, bool is_used) {
  return !is_used || (data != nullptr && reinterpret_cast<uintptr_t>(data) % 16 == 0);
}

bool is_legal(Pointwise const& call) {
  Blocking const& of = call.blocking;
  bool const extents_fit = of.rows >= 0 && of.rows <= INT32_MAX && of.cols >= 0 &&
                           of.cols <= INT32_MAX && of.cols % kVector == 0;
  bool const blocks_fit = of.block_rows > 0 && of.block_cols > 0 && of.block_cols % kVector == 0;
  bool const is_known =
      call.activation >= Activation::none && call.activation <= Activation::gelu_tanh;
  return extents_fit && blocks_fit && is_known && lies_well(call.a, true) &&
         lies_well(call.b, reads_b(call.kind)) && lies_well(call.grad, reads_grad(call.kind)) &&
         lies_well(call.out, true) && lies_well(call.out_b, call.kind == PointwiseKind::gate_grad);
}

}  // namespace

cudaError_t pointwise(Pointwise const& call, cudaStream_t stream) {
  if (call.blocking.rows == 0 || call.blocking.cols == 0) {
    return cudaSuccess;
  }
  if (!is_legal(call)) {
    return cudaErrorInvalidValue;
  }
  switch (call.dtype) {
    case DataType::bf16:
      return run<__nv_bfloat16>(call, stream);
    case DataType::fp16:
      return run<__half>(call, stream);
    case DataType::fp32:
    case DataType::fp64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
