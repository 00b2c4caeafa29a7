// Live units gathered into compact matrices, several in one launch.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "elementwise/live_units.hpp"

namespace sparsedrop {
namespace {

using namespace live_units;

constexpr int kBatch = 4;     // vectors of a thread whose loads are under way together
constexpr int kGathered = 4;  // elements of a vector: 16 bytes of fp32

struct Gathered {
  Gathering of;
  Vectors vectors;
  bool is_whole;  // vectors of kGathered elements, else of one
};

template <class From, class Narrow, int kVector>
__device__ void gather_array(Gathered const& array, Lines const& rows, Lines const& cols) {
  Gathering const& of = array.of;
  auto const* const from = static_cast<From const*>(of.from);
  auto* const to = static_cast<Narrow*>(of.to);
  int64_t const step = int64_t(gridDim.x) * kThreads * kBatch;
  for (int64_t first = int64_t(blockIdx.x) * kThreads * kBatch + threadIdx.x;
       first < array.vectors.count; first += step) {
    Vector<From, kVector> read[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      int64_t const i = first + b * kThreads;
      if (i < array.vectors.count) {
        Place const at = place_of(array.vectors, int32_t(i));
        int64_t const row = rows.line(at.row);
        int64_t const col = cols.line(at.vector * kVector);
        read[b] = {};
        if (row >= 0 && col >= 0) {
          read[b] = *reinterpret_cast<Vector<From, kVector> const*>(from + row * of.from_ld + col);
        }
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      int64_t const i = first + b * kThreads;
      if (i < array.vectors.count) {
        Place const at = place_of(array.vectors, int32_t(i));
        Vector<Narrow, kVector> written;
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          written.element[v] = rounded<Narrow>(widened(read[b].element[v]) * of.factor);
        }
        *reinterpret_cast<Vector<Narrow, kVector>*>(to + at.row * of.to_ld + at.vector * kVector) =
            written;
      }
    }
  }
}

template <class From, class Narrow>
__device__ void gather_of(Gathered const& array, Lines const& rows, Lines const& cols) {
  if (array.is_whole) {
    gather_array<From, Narrow, kGathered>(array, rows, cols);
  } else {
    gather_array<From, Narrow, 1>(array, rows, cols);
  }
}

template <class Narrow>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Params<Gathered, kMaxGatherings> const params) {
  Gathered const& array = params.arrays[blockIdx.y];
  Lines const rows = params.rows(array.of.along);
  Lines const cols = params.cols(array.of.along);
  if (array.of.from_dtype == DataType::fp32) {
    gather_of<float, Narrow>(array, rows, cols);
  } else if constexpr (!std::is_same_v<Narrow, float>) {
    gather_of<Narrow, Narrow>(array, rows, cols);
  }
}

bool is_legal(Gathering const& of, DataType dtype, LiveUnits const& units,
              LiveUnits const& across) {
  bool const is_readable = of.from_dtype == DataType::fp32 || of.from_dtype == dtype;
  bool const is_compact =
      (!are_along_rows(of.along) || of.rows >= units.count) &&
      (!are_along_cols(of.along) || of.cols >= units_of_cols(of.along, units, across).count);
  return is_readable && is_compact && of.from != nullptr && of.to != nullptr && of.rows >= 0 &&
         of.cols >= 0 && of.to_ld >= of.cols && (of.cols == 0 || of.rows <= INT32_MAX / of.cols);
}

// `units`: of the columns.
Gathered gathered(Gathering const& of, LiveUnits const& units) {
  bool const is_whole = of.cols % kGathered == 0 && of.from_ld % kGathered == 0 &&
                        of.to_ld % kGathered == 0 && is_aligned(of.from, 16) &&
                        is_aligned(of.to, 16) &&
                        (!are_along_cols(of.along) || are_whole(units, kGathered));
  return {of, Vectors(of.rows, of.cols, is_whole ? kGathered : 1), is_whole};
}

}  // namespace

cudaError_t gather_units(DataType dtype, LiveUnits const& units, Gathering const* arrays, int count,
                         cudaStream_t stream, LiveUnits const& across) {
  if (count < 0 || count > kMaxGatherings || !are_legal(units) || !are_legal(across) ||
      dtype == DataType::fp64) {
    return cudaErrorInvalidValue;
  }
  Params<Gathered, kMaxGatherings> params{};
  params.units = UnitMap(units);
  params.across = UnitMap(across);
  int32_t most = 0;
  for (int i = 0; i < count; ++i) {
    if (!is_legal(arrays[i], dtype, units, across)) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = gathered(arrays[i], units_of_cols(arrays[i].along, units, across));
    most = std::max(most, params.arrays[i].vectors.count);
  }
  if (most == 0) {
    return cudaSuccess;
  }
  dim3 const grid = grid_of(most, kThreads * kBatch, count);
  if (dtype == DataType::bf16) {
    gather_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(params);
  } else if (dtype == DataType::fp16) {
    gather_kernel<__half><<<grid, kThreads, 0, stream>>>(params);
  } else {
    gather_kernel<float><<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace sparsedrop
