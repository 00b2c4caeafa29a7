// What a feed-forward block does between its products, in the live blocks of its hidden matrices.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/divisor.hpp"
#include "elementwise/elements.hpp"
#include "elementwise/pointwise_values.hpp"
#include "elementwise/unit_map.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {
namespace {

using namespace pointwise_values;

// Of the part that a warp takes at once, so narrow that it lies within one block: its lanes are
// live together.
constexpr int kWarpLanesAcross = 8;
constexpr int kWarpRows = kWarp / kWarpLanesAcross;
constexpr int kWarpsAcross = 2;
constexpr int kWarpsDown = 4;
constexpr int kThreads = kWarp * kWarpsAcross * kWarpsDown;
constexpr int kTileCols = kWarpsAcross * kWarpLanesAcross * kVector;
constexpr int kRowsAtOnce = kWarpsDown * kWarpRows;
constexpr int kRowsPerThread = 4;  // whose loads are under way together
constexpr int kTileRows = kRowsAtOnce * kRowsPerThread;
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
  // Of units, or null.
  void const* bias_a;
  void const* bias_b;
  bool biases_are_fp32;
  UnitMap units;
};

// What is added to a CTA's columns. In shared memory: in registers they would be spilled.
struct Biases {
  alignas(16) float a[kTileCols];
  alignas(16) float b[kTileCols];
};

template <class Element>
__device__ float bias_at(Params<Element> const& p, void const* from, int64_t col) {
  if (from == nullptr || col >= p.units.count()) {
    return 0.0f;
  }
  int32_t const unit = p.units.unit(int32_t(col));
  return p.biases_are_fp32 ? static_cast<float const*>(from)[unit]
                           : widened(static_cast<Element const*>(from)[unit]);
}

// By all threads of a CTA.
template <class Element>
__device__ void load_biases(Params<Element> const& p, Biases& to) {
  static_assert(kThreads == 2 * kTileCols, "a thread loads one bias");
  int const own = threadIdx.x % kTileCols;
  int64_t const col = int64_t(blockIdx.x) * kTileCols + own;
  if (threadIdx.x < kTileCols) {
    to.a[own] = bias_at(p, p.bias_a, col);
  } else {
    to.b[own] = bias_at(p, p.bias_b, col);
  }
  __syncthreads();
}

__device__ void add(float const* biases, float (&to)[kVector]) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    to[v] += biases[v];
  }
}

// What a thread reads of some rows, all in the same columns.
template <class Element>
struct Loaded {
  using Part = Vector<Element, kVector>;
  Part a[kRowsPerThread];
  Part b[kRowsPerThread];
  Part grad[kRowsPerThread];
  bool is_live[kRowsPerThread];
};

template <PointwiseKind kKind, class Element>
__device__ void load(Params<Element> const& p, int64_t top, int32_t col, Loaded<Element>& to) {
  using Part = typename Loaded<Element>::Part;
  int32_t const block_col = col / p.block_cols;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    int64_t const row = top + i * kRowsAtOnce;
    to.is_live[i] = row < p.rows &&
                    (p.live == nullptr ||
                     p.live[int64_t(int32_t(row) / p.block_rows) * p.grid_cols + block_col] != 0);
  }
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    int64_t const at = (top + i * kRowsAtOnce) * p.cols + col;
    to.a[i] = to.b[i] = to.grad[i] = Part{};
    if (to.is_live[i]) {
      to.a[i] = *reinterpret_cast<Part const*>(p.a + at);
      if constexpr (reads_b(kKind)) {
        to.b[i] = *reinterpret_cast<Part const*>(p.b + at);
      }
      if constexpr (reads_grad(kKind)) {
        to.grad[i] = *reinterpret_cast<Part const*>(p.grad + at);
      }
    }
  }
}

// At the second CTA of an SM, or at its own choice, ptxas spills for compute capability 12.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int min_ctas(bool /*is_biased*/) { return 1; }
#else
constexpr int min_ctas(bool is_biased) { return is_biased ? 2 : 0; }
#endif

template <PointwiseKind kKind, bool kBiased, class Element>
__global__ void __launch_bounds__(kThreads, min_ctas(kBiased))
    pointwise_kernel(Params<Element> const p) {
  auto const lane = int(threadIdx.x % kWarp);
  auto const warp = int(threadIdx.x / kWarp);
  int const col_in_tile =
      (warp % kWarpsAcross * kWarpLanesAcross + lane % kWarpLanesAcross) * kVector;
  int64_t const first_col = int64_t(blockIdx.x) * kTileCols + col_in_tile;
  __shared__ std::conditional_t<kBiased, Biases, char> biases;
  if constexpr (kBiased) {
    load_biases(p, biases);
  }
  if (first_col >= p.cols) {
    return;
  }
  auto const col = int32_t(first_col);
  int const row_in_tile = warp / kWarpsAcross * kWarpRows + lane / kWarpLanesAcross;
  for (int64_t tile = blockIdx.y; tile * kTileRows < p.rows; tile += gridDim.y) {
    int64_t const top = tile * kTileRows + row_in_tile;
    Loaded<Element> loaded;
    load<kKind>(p, top, col, loaded);
    with_activation(p.activation, [&](auto const& act, auto const& slope) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        if (loaded.is_live[i]) {
          int64_t const at = (top + i * kRowsAtOnce) * p.cols + col;
          Values in;
          Results found;
          widen(loaded.a[i], in.a);
          widen(loaded.b[i], in.b);
          widen(loaded.grad[i], in.grad);
          if constexpr (kBiased) {
            add(biases.a + col_in_tile, in.a);
            if constexpr (reads_b(kKind)) {
              add(biases.b + col_in_tile, in.b);
            }
          }
          compute<kKind>(in, found, act, slope);
          store(found.out, p.out + at);
          if constexpr (kKind == PointwiseKind::gate_grad) {
            store(found.out_b, p.out_b + at);
          }
        }
      }
    });
  }
}

template <PointwiseKind kKind, bool kBiased, class Element>
cudaError_t launch(Pointwise const& call, UnitBiases const& biases, cudaStream_t stream) {
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
                               call.activation,
                               biases.a,
                               biases.b,
                               biases.dtype == DataType::fp32,
                               UnitMap(biases.units)};
  auto const across = unsigned(ceil_div(of.cols, kTileCols));
  auto const down = unsigned(std::min<int64_t>(ceil_div(of.rows, kTileRows), kMaxGridRows));
  pointwise_kernel<kKind, kBiased, Element><<<dim3(across, down), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

template <bool kBiased, class Element>
cudaError_t run(Pointwise const& call, UnitBiases const& biases, cudaStream_t stream) {
  switch (call.kind) {
    case PointwiseKind::activate:
      return launch<PointwiseKind::activate, kBiased, Element>(call, biases, stream);
    case PointwiseKind::activation_grad:
      return launch<PointwiseKind::activation_grad, kBiased, Element>(call, biases, stream);
    case PointwiseKind::gate:
      return launch<PointwiseKind::gate, kBiased, Element>(call, biases, stream);
    case PointwiseKind::gate_grad:
      return launch<PointwiseKind::gate_grad, kBiased, Element>(call, biases, stream);
    case PointwiseKind::add:
      if constexpr (!kBiased) {
        return launch<PointwiseKind::add, kBiased, Element>(call, biases, stream);
      }
  }
  return cudaErrorInvalidValue;
}

template <bool kBiased>
cudaError_t run(Pointwise const& call, UnitBiases const& biases, cudaStream_t stream) {
  switch (call.dtype) {
    case DataType::bf16:
      return run<kBiased, __nv_bfloat16>(call, biases, stream);
    case DataType::fp16:
      return run<kBiased, __half>(call, biases, stream);
    case DataType::fp32:
    case DataType::fp64:
      break;
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

bool are_legal(UnitBiases const& biases, Pointwise const& call) {
  bool const is_known = biases.dtype == DataType::fp32 || biases.dtype == call.dtype;
  return is_known && are_legal(biases.units) && biases.units.count <= call.blocking.cols;
}

}  // namespace

cudaError_t pointwise(Pointwise const& call, cudaStream_t stream) {
  if (call.blocking.rows == 0 || call.blocking.cols == 0) {
    return cudaSuccess;
  }
  return is_legal(call) ? run<false>(call, {}, stream) : cudaErrorInvalidValue;
}

cudaError_t pointwise(Pointwise const& call, UnitBiases const& biases, cudaStream_t stream) {
  if (biases.a == nullptr && biases.b == nullptr) {
    return pointwise(call, stream);
  }
  if (call.blocking.rows == 0 || call.blocking.cols == 0) {
    return cudaSuccess;
  }
  return is_legal(call) && are_legal(biases, call) ? run<true>(call, biases, stream)
                                                   : cudaErrorInvalidValue;
}

}  // namespace sparsedrop
