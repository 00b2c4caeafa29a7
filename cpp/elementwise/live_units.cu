// Live units gathered into compact matrices, and whole ones filled from those: several matrices in
// one launch.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/divisor.hpp"
#include "elementwise/elements.hpp"
#include "elementwise/unit_map.hpp"

namespace sparsedrop {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 4;  // vectors of a thread whose loads are under way together
constexpr int64_t kMaxCtas = 2048;

// A matrix as vectors of some columns, one behind the other.
struct Vectors {
  int32_t count;
  Divisor across;

  Vectors() = default;
  Vectors(int64_t rows, int64_t cols, int width)
      : count(int32_t(rows * (cols / width))),
        across(int32_t(std::max<int64_t>(cols / width, 1))) {}
};

struct Place {
  int32_t row;
  int32_t vector;
};

__device__ Place place_of(Vectors const& of, int32_t i) {
  int32_t const row = i / of.across;
  return {row, i - row * of.across.value()};
}

template <class Array, int kMost>
struct Params {
  Array arrays[kMost];
  UnitMap units;
};

dim3 grid_of(int64_t most_vectors, int64_t per_cta, int count) {
  return dim3(unsigned(std::min(ceil_div(most_vectors, per_cta), kMaxCtas)), unsigned(count));
}

// ---- gathering ----------------------------------------------------------------------------------

constexpr int kGathered = 4;  // elements of a vector: 16 bytes of fp32

struct Gathered {
  Gathering of;
  Vectors vectors;
  bool is_whole;  // vectors of kGathered elements, else of one
};

template <class From, class Narrow, int kVector>
__device__ void gather_array(Gathered const& array, UnitMap const& units) {
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
        int32_t const col = at.vector * kVector;
        int64_t const row = of.along == UnitsAlong::rows ? units.unit(at.row) : at.row;
        int64_t const unit = of.along == UnitsAlong::cols ? units.unit(col) : col;
        read[b] = *reinterpret_cast<Vector<From, kVector> const*>(from + row * of.from_ld + unit);
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
__device__ void gather_of(Gathered const& array, UnitMap const& units) {
  if (array.is_whole) {
    gather_array<From, Narrow, kGathered>(array, units);
  } else {
    gather_array<From, Narrow, 1>(array, units);
  }
}

template <class Narrow>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Params<Gathered, kMaxGatherings> const params) {
  Gathered const& array = params.arrays[blockIdx.y];
  if (array.of.from_dtype == DataType::fp32) {
    gather_of<float, Narrow>(array, params.units);
  } else if constexpr (!std::is_same_v<Narrow, float>) {
    gather_of<Narrow, Narrow>(array, params.units);
  }
}

bool is_aligned(void const* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

bool is_legal(Gathering const& of, DataType dtype, LiveUnits const& units) {
  bool const is_readable = of.from_dtype == DataType::fp32 || of.from_dtype == dtype;
  bool const is_compact = (of.along != UnitsAlong::rows || of.rows == units.count) &&
                          (of.along != UnitsAlong::cols || of.cols == units.count);
  return is_readable && is_compact && of.from != nullptr && of.to != nullptr && of.rows >= 0 &&
         of.cols >= 0 && of.to_ld >= of.cols && (of.cols == 0 || of.rows <= INT32_MAX / of.cols);
}

Gathered gathered(Gathering const& of, LiveUnits const& units) {
  bool const is_whole = of.cols % kGathered == 0 && of.from_ld % kGathered == 0 &&
                        of.to_ld % kGathered == 0 && is_aligned(of.from, 16) &&
                        is_aligned(of.to, 16) &&
                        (of.along != UnitsAlong::cols || are_whole(units, kGathered));
  return {of, Vectors(of.rows, of.cols, is_whole ? kGathered : 1), is_whole};
}

// ---- filling ------------------------------------------------------------------------------------

struct Filled {
  Filling of;
  Vectors vectors;
  int32_t ld;     // of the compact matrix
  bool is_whole;  // vectors of 16 bytes, which are live or dropped as one, else single elements
};

template <class Live, class Element, int kVector>
__device__ void fill_array(Filled const& array, UnitMap const& units) {
  Filling const& of = array.of;
  bool const is_by_rows = of.along == UnitsAlong::rows;
  auto const* const live = static_cast<Live const*>(of.live);
  auto* const to = static_cast<Vector<Element, kVector>*>(of.to);
  int64_t const step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < array.vectors.count;
       i += step) {
    Place const at = place_of(array.vectors, int32_t(i));
    int32_t const col = at.vector * kVector;
    int32_t const place = units.place(is_by_rows ? at.row : col);
    if (place < 0 && of.dropped == Dropped::zeroed) {
      to[i] = Vector<Element, kVector>{};
    } else if (place >= 0 && live != nullptr) {
      int64_t const row = is_by_rows ? place : at.row;
      auto const read = *reinterpret_cast<Vector<Live, kVector> const*>(live + row * array.ld +
                                                                        (is_by_rows ? col : place));
      Vector<Element, kVector> written;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        written.element[v] = rounded<Element>(widened(read.element[v]) * of.factor);
      }
      to[i] = written;
    }
  }
}

template <class Live, class Element>
__device__ void fill_from(Filled const& array, UnitMap const& units) {
  if (array.is_whole) {
    fill_array<Live, Element, int(16 / sizeof(Element))>(array, units);
  } else {
    fill_array<Live, Element, 1>(array, units);
  }
}

template <class Narrow>
__device__ void fill_narrow(Filled const& array, UnitMap const& units) {
  if (array.of.live_dtype == DataType::fp32) {
    fill_from<float, Narrow>(array, units);
  } else {
    fill_from<Narrow, Narrow>(array, units);
  }
}

__global__ void __launch_bounds__(kThreads) fill_kernel(Params<Filled, kMaxFillings> const params) {
  Filled const& array = params.arrays[blockIdx.y];
  if (array.of.dtype == DataType::bf16) {
    fill_narrow<__nv_bfloat16>(array, params.units);
  } else if (array.of.dtype == DataType::fp16) {
    fill_narrow<__half>(array, params.units);
  } else if (array.of.live_dtype == DataType::bf16) {
    fill_from<__nv_bfloat16, float>(array, params.units);
  } else if (array.of.live_dtype == DataType::fp16) {
    fill_from<__half, float>(array, params.units);
  } else {
    fill_from<float, float>(array, params.units);
  }
}

bool is_legal(Filling const& of) {
  bool const is_readable = of.live == nullptr || of.live_dtype == of.dtype ||
                           of.live_dtype == DataType::fp32 ||
                           (of.dtype == DataType::fp32 && of.live_dtype != DataType::fp64);
  return of.to != nullptr && of.dtype != DataType::fp64 && is_readable &&
         of.along != UnitsAlong::neither && of.rows >= 0 && of.cols >= 0 &&
         (of.cols == 0 || of.rows <= INT32_MAX / of.cols);
}

Filled filled(Filling const& of, LiveUnits const& units) {
  int const wide = of.dtype == DataType::fp32 ? 4 : 8;
  bool const is_by_rows = of.along == UnitsAlong::rows;
  bool const is_whole = of.cols % wide == 0 && is_aligned(of.to, 16) && is_aligned(of.live, 32) &&
                        (is_by_rows || are_whole(units, wide));
  return {of, Vectors(of.rows, of.cols, is_whole ? wide : 1),
          int32_t(is_by_rows ? of.cols : units.count), is_whole};
}

}  // namespace

cudaError_t gather_units(DataType dtype, LiveUnits const& units, Gathering const* arrays, int count,
                         cudaStream_t stream) {
  if (count < 0 || count > kMaxGatherings || !are_legal(units) || dtype == DataType::fp64) {
    return cudaErrorInvalidValue;
  }
  Params<Gathered, kMaxGatherings> params{};
  params.units = UnitMap(units);
  int32_t most = 0;
  for (int i = 0; i < count; ++i) {
    if (!is_legal(arrays[i], dtype, units)) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = gathered(arrays[i], units);
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

cudaError_t fill_units(LiveUnits const& units, Filling const* arrays, int count,
                       cudaStream_t stream) {
  if (count < 0 || count > kMaxFillings || !are_legal(units)) {
    return cudaErrorInvalidValue;
  }
  Params<Filled, kMaxFillings> params{};
  params.units = UnitMap(units);
  int32_t most = 0;
  for (int i = 0; i < count; ++i) {
    if (!is_legal(arrays[i])) {
      return cudaErrorInvalidValue;
    }
    params.arrays[i] = filled(arrays[i], units);
    most = std::max(most, params.arrays[i].vectors.count);
  }
  if (most == 0) {
    return cudaSuccess;
  }
  fill_kernel<<<grid_of(most, kThreads, count), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace sparsedrop
