// Whole matrices filled from compact ones of live units, several in one launch.

#include <algorithm>
#include <cstdint>

#include "elementwise/live_units.hpp"

namespace sparsedrop {
namespace {

using namespace live_units;

// Single elements; vectors of 16 bytes, which are live or dropped as one; or such vectors whose
// elements are looked up one by one.
enum class Way { singles, together, apart };

struct Filled {
  Filling of;
  Vectors vectors;
  int32_t ld;  // of the compact matrix
  Way way;
};

// By all threads of the array's CTAs: then(index, place) for each of its vectors.
template <class Then>
__device__ void for_vectors(Vectors const& vectors, Then const& then) {
  int64_t const step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < vectors.count; i += step) {
    then(i, place_of(vectors, int32_t(i)));
  }
}

template <class Live, class Element, int kVector>
__device__ void fill_array(Filled const& array, Lines const& rows, Lines const& cols) {
  Filling const& of = array.of;
  auto const* const live = static_cast<Live const*>(of.live);
  auto* const to = static_cast<Vector<Element, kVector>*>(of.to);
  for_vectors(array.vectors, [&](int64_t i, Place const& at) {
    int64_t const row = rows.place(at.row);
    int64_t const col = cols.place(at.vector * kVector);
    bool const is_live = row >= 0 && col >= 0;
    if (!is_live && of.dropped == Dropped::zeroed) {
      to[i] = Vector<Element, kVector>{};
    } else if (is_live && live != nullptr) {
      auto const read =
          *reinterpret_cast<Vector<Live, kVector> const*>(live + row * array.ld + col);
      Vector<Element, kVector> written;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        written.element[v] = rounded<Element>(widened(read.element[v]) * of.factor);
      }
      to[i] = written;
    }
  });
}

template <class Live, class Element>
__device__ void fill_apart(Filled const& array, Lines const& rows, Lines const& cols) {
  constexpr int kVector = int(16 / sizeof(Element));
  Filling const& of = array.of;
  auto const* const live = static_cast<Live const*>(of.live);
  auto* const to = static_cast<Vector<Element, kVector>*>(of.to);
  for_vectors(array.vectors, [&](int64_t i, Place const& at) {
    int64_t const row = rows.place(at.row);
    Vector<Element, kVector> written{};
    if (row >= 0) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        int64_t const col = cols.place(at.vector * kVector + v);
        if (col >= 0) {
          written.element[v] = rounded<Element>(widened(live[row * array.ld + col]) * of.factor);
        }
      }
    }
    to[i] = written;
  });
}

template <class Live, class Element>
__device__ void fill_from(Filled const& array, Lines const& rows, Lines const& cols) {
  if (array.way == Way::together) {
    fill_array<Live, Element, int(16 / sizeof(Element))>(array, rows, cols);
  } else if (array.way == Way::apart) {
    fill_apart<Live, Element>(array, rows, cols);
  } else {
    fill_array<Live, Element, 1>(array, rows, cols);
  }
}

template <class Narrow>
__device__ void fill_narrow(Filled const& array, Lines const& rows, Lines const& cols) {
  if (array.of.live_dtype == DataType::fp32) {
    fill_from<float, Narrow>(array, rows, cols);
  } else {
    fill_from<Narrow, Narrow>(array, rows, cols);
  }
}

__global__ void __launch_bounds__(kThreads) fill_kernel(Params<Filled, kMaxFillings> const params) {
  Filled const& array = params.arrays[blockIdx.y];
  Lines const rows = params.rows(array.of.along);
  Lines const cols = params.cols(array.of.along);
  if (array.of.dtype == DataType::bf16) {
    fill_narrow<__nv_bfloat16>(array, rows, cols);
  } else if (array.of.dtype == DataType::fp16) {
    fill_narrow<__half>(array, rows, cols);
  } else if (array.of.live_dtype == DataType::bf16) {
    fill_from<__nv_bfloat16, float>(array, rows, cols);
  } else if (array.of.live_dtype == DataType::fp16) {
    fill_from<__half, float>(array, rows, cols);
  } else {
    fill_from<float, float>(array, rows, cols);
  }
}

// `units`, here and below: of the columns.
int64_t compact_ld(Filling const& of, LiveUnits const& units) {
  return of.live_ld != 0 ? of.live_ld : are_along_cols(of.along) ? units.count : of.cols;
}

bool is_legal(Filling const& of, LiveUnits const& units) {
  bool const is_readable = of.live == nullptr || of.live_dtype == of.dtype ||
                           of.live_dtype == DataType::fp32 ||
                           (of.dtype == DataType::fp32 && of.live_dtype != DataType::fp64);
  return of.to != nullptr && of.dtype != DataType::fp64 && is_readable &&
         of.along != UnitsAlong::neither && of.rows >= 0 && of.cols >= 0 &&
         compact_ld(of, units) >= (are_along_cols(of.along) ? units.count : of.cols) &&
         compact_ld(of, units) <= INT32_MAX && (of.cols == 0 || of.rows <= INT32_MAX / of.cols);
}

Way way_of(Filling const& of, int64_t ld, LiveUnits const& units) {
  int const wide = of.dtype == DataType::fp32 ? 4 : 8;
  if (of.cols % wide != 0 || !is_aligned(of.to, 16)) {
    return Way::singles;
  }
  if (ld % wide == 0 && is_aligned(of.live, 32) &&
      (!are_along_cols(of.along) || are_whole(units, wide))) {
    return Way::together;
  }
  return of.live != nullptr && of.dropped == Dropped::zeroed ? Way::apart : Way::singles;
}

Filled filled(Filling const& of, LiveUnits const& units) {
  int64_t const ld = compact_ld(of, units);
  Way const way = way_of(of, ld, units);
  int const wide = way == Way::singles ? 1 : of.dtype == DataType::fp32 ? 4 : 8;
  return {of, Vectors(of.rows, of.cols, wide), int32_t(ld), way};
}

}  // namespace

cudaError_t fill_units(LiveUnits const& units, Filling const* arrays, int count,
                       cudaStream_t stream, LiveUnits const& across) {
  if (count < 0 || count > kMaxFillings || !are_legal(units) || !are_legal(across)) {
    return cudaErrorInvalidValue;
  }
  Params<Filled, kMaxFillings> params{};
  params.units = UnitMap(units);
  params.across = UnitMap(across);
  int32_t most = 0;
  for (int i = 0; i < count; ++i) {
    LiveUnits const& of_cols = units_of_cols(arrays[i].along, units, across);
    if (!is_legal(arrays[i], of_cols)) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = filled(arrays[i], of_cols);
    most = std::max(most, params.arrays[i].vectors.count);
  }
  if (most == 0) {
    return cudaSuccess;
  }
  fill_kernel<<<grid_of(most, kThreads, count), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace sparsedrop
