// A matrix with its dropped blocks 0 and its live ones scaled: read once, written once.

#include <algorithm>
#include <cstdint>

#include "common/divisor.hpp"
#include "elementwise/elements.hpp"
#include "mask/drawn_blocks.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kRowsAtOnce = 8;     // by one CTA, a warp each
constexpr int kRowsPerThread = 4;  // whose loads are under way together
constexpr unsigned kMaxGridRows = 65535;

template <class In, class Out>
struct Params {
  In const* in;
  int64_t in_ld;
  Out* out;
  int64_t out_ld;
  int32_t rows;
  int32_t cols;
  Divisor block_rows;
  Divisor block_cols;
  uint8_t const* live;
  int64_t live_row_stride;
  int64_t live_col_stride;
  Accumulator<In> factor;
  bool leaves_live;  // they are where and what they should be
  uint8_t* drawn;    // or null: the grid is given
  DrawnBlocks blocks;
};

// What one thread asks of the grid, down the rows: it draws a block once, and not for every row.
template <class P>
class Grid {
 public:
  __device__ explicit Grid(P const& p) : p_(p) {}

  __device__ bool is_live(int32_t row, int32_t col) {
    int32_t const block_row = row / p_.block_rows, block_col = col / p_.block_cols;
    int64_t const block = block_row * p_.live_row_stride + block_col * p_.live_col_stride;
    if (p_.drawn == nullptr) {
      return p_.live[block] != 0;
    }
    if (block != last_) {
      last_ = block;
      is_last_live_ = p_.blocks.is_live(block);
    }
    if (row == block_row * p_.block_rows.value() && col == block_col * p_.block_cols.value()) {
      p_.drawn[block] = is_last_live_;
    }
    return is_last_live_;
  }

 private:
  P const& p_;
  int64_t last_ = -1;
  bool is_last_live_ = false;
};

// Which elements of a vector are live, as bits. With `kWhole` a vector lies in one block.
template <int kVector, bool kWhole, class P>
__device__ uint32_t live_bits(P const& p, Grid<P>& grid, int32_t row, int32_t col) {
  constexpr uint32_t kAll = (1u << kVector) - 1;
  if (p.live == nullptr && p.drawn == nullptr) {
    return kAll;
  }
  if constexpr (kWhole) {
    return grid.is_live(row, col) ? kAll : 0;
  } else {
    uint32_t bits = 0;
#pragma unroll 1  // a draw is long: eight of them for each row take all registers
    for (int v = 0; v < kVector; ++v) {
      bits |= uint32_t(grid.is_live(row, col + v)) << v;
    }
    return bits;
  }
}

template <class In, class Out, int kVector, bool kWhole>
__global__ void __launch_bounds__(kWarp* kRowsAtOnce) masked_copy_kernel(Params<In, Out> const p) {
  int64_t const first_col = (int64_t(blockIdx.x) * kWarp + threadIdx.x) * kVector;
  if (first_col >= p.cols) {
    return;
  }
  auto const col = int32_t(first_col);
  constexpr uint32_t kAllLive = (1u << kVector) - 1;
  static_assert(kVector * kRowsPerThread <= 32);
  constexpr int64_t kStep = kRowsAtOnce * kRowsPerThread;
  Grid<Params<In, Out>> grid(p);
  for (int64_t top = blockIdx.y * kStep + threadIdx.y; top < p.rows; top += gridDim.y * kStep) {
    uint32_t live = 0;  // of all its rows: kVector bits each
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      int64_t const row = top + i * kRowsAtOnce;
      if (row < p.rows) {
        live |= live_bits<kVector, kWhole>(p, grid, int32_t(row), col) << i * kVector;
      }
    }
    Vector<In, kVector> read[kRowsPerThread] = {};
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      int64_t const row = top + i * kRowsAtOnce;
      uint32_t const of_row = live >> i * kVector & kAllLive;
      if (of_row != 0 && !(p.leaves_live && of_row == kAllLive)) {
        read[i] = *reinterpret_cast<Vector<In, kVector> const*>(p.in + row * p.in_ld + col);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      int64_t const row = top + i * kRowsAtOnce;
      uint32_t const of_row = live >> i * kVector & kAllLive;
      if (row < p.rows && !(p.leaves_live && of_row == kAllLive)) {
        Vector<Out, kVector> written;
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          // Chosen and not multiplied: what stands in a dropped block may be NaN.
          Accumulator<In> const value =
              (of_row >> v & 1u) != 0 ? widened(read[i].element[v]) * p.factor : 0;
          written.element[v] = rounded<Out>(value);
        }
        *reinterpret_cast<Vector<Out, kVector>*>(p.out + row * p.out_ld + col) = written;
      }
    }
  }
}

template <class In, class Out, int kVector, bool kWhole>
cudaError_t launch(Params<In, Out> const& params, cudaStream_t stream) {
  auto const across = unsigned(ceil_div(params.cols, kWarp * kVector));
  auto const down = unsigned(
      std::min<int64_t>(ceil_div(params.rows, kRowsAtOnce * kRowsPerThread), kMaxGridRows));
  masked_copy_kernel<In, Out, kVector, kWhole>
      <<<dim3(across, down), dim3(kWarp, kRowsAtOnce), 0, stream>>>(params);
  return cudaGetLastError();
}

template <class In, class Out>
cudaError_t run(MaskedCopy const& copy, cudaStream_t stream) {
  bool const draws = copy.drawn != nullptr;
  Params<In, Out> const params{
      static_cast<In const*>(copy.in),
      copy.in_ld,
      static_cast<Out*>(copy.out),
      copy.out_ld,
      int32_t(copy.blocking.rows),
      int32_t(copy.blocking.cols),
      copy.blocking.block_rows,
      copy.blocking.block_cols,
      copy.live,
      draws ? ceil_div(copy.blocking.cols, copy.blocking.block_cols) : copy.live_row_stride,
      draws ? 1 : copy.live_col_stride,
      Accumulator<In>(copy.factor),
      copy.in == copy.out && copy.in_dtype == copy.out_dtype && copy.in_ld == copy.out_ld &&
          copy.factor == 1.0,
      copy.drawn,
      drawn_blocks(copy.draw)};
  // 16 bytes of the wider type, where both matrices lie so that every row is whole vectors.
  constexpr int kVector = 16 / std::max(sizeof(In), sizeof(Out));
  auto const fits = [](void const* data, size_t element, int64_t ld) {
    return reinterpret_cast<uintptr_t>(data) % (element * kVector) == 0 && ld % kVector == 0;
  };
  bool const is_aligned = fits(copy.in, sizeof(In), copy.in_ld) &&
                          fits(copy.out, sizeof(Out), copy.out_ld) &&
                          copy.blocking.cols % kVector == 0;
  if (!is_aligned) {
    return launch<In, Out, 1, true>(params, stream);
  }
  return copy.blocking.block_cols % kVector == 0 ? launch<In, Out, kVector, true>(params, stream)
                                                 : launch<In, Out, kVector, false>(params, stream);
}

template <class Narrow>
cudaError_t run_narrow(MaskedCopy const& copy, cudaStream_t stream) {
  return copy.out_dtype == DataType::fp32  ? run<Narrow, float>(copy, stream)
         : copy.out_dtype == copy.in_dtype ? run<Narrow, Narrow>(copy, stream)
                                           : cudaErrorInvalidValue;
}

cudaError_t run_float(MaskedCopy const& copy, cudaStream_t stream) {
  switch (copy.out_dtype) {
    case DataType::bf16:
      return run<float, __nv_bfloat16>(copy, stream);
    case DataType::fp16:
      return run<float, __half>(copy, stream);
    case DataType::fp32:
      return run<float, float>(copy, stream);
    case DataType::fp64:
      break;
  }
  return cudaErrorInvalidValue;
}

bool is_legal(MaskedCopy const& copy) {
  Blocking const& blocking = copy.blocking;
  bool const extents_fit = blocking.rows >= 0 && blocking.rows <= INT32_MAX && blocking.cols >= 0 &&
                           blocking.cols <= INT32_MAX && blocking.block_rows > 0 &&
                           blocking.block_cols > 0;
  bool const in_fits = copy.in_ld == 0 || copy.in_ld >= blocking.cols;
  return extents_fit && in_fits && copy.out_ld >= blocking.cols && is_legal(copy.draw);
}

}  // namespace

cudaError_t masked_copy(MaskedCopy const& copy, cudaStream_t stream) {
  if (!is_legal(copy)) {
    return cudaErrorInvalidValue;
  }
  if (copy.blocking.rows == 0 || copy.blocking.cols == 0) {
    return cudaSuccess;
  }
  switch (copy.in_dtype) {
    case DataType::bf16:
      return run_narrow<__nv_bfloat16>(copy, stream);
    case DataType::fp16:
      return run_narrow<__half>(copy, stream);
    case DataType::fp32:
      return run_float(copy, stream);
    case DataType::fp64:
      return copy.out_dtype == DataType::fp64 ? run<double, double>(copy, stream)
                                              : cudaErrorInvalidValue;
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
