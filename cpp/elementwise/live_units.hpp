// What gathering and filling share: a matrix as vectors, and which of its lines are live.

#pragma once

#include <algorithm>
#include <cstdint>

#include "common/divisor.hpp"
#include "elementwise/elements.hpp"
#include "elementwise/unit_map.hpp"

namespace sparsedrop::live_units {

constexpr int kThreads = 256;
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

__device__ inline Place place_of(Vectors const& of, int32_t i) {
  int32_t const row = i / of.across;
  return {row, i - row * of.across.value()};
}

__host__ __device__ inline bool are_along_rows(UnitsAlong along) {
  return along == UnitsAlong::rows || along == UnitsAlong::both;
}

__host__ __device__ inline bool are_along_cols(UnitsAlong along) {
  return along == UnitsAlong::cols || along == UnitsAlong::both;
}

inline LiveUnits const& units_of_cols(UnitsAlong along, LiveUnits const& units,
                                      LiveUnits const& across) {
  return along == UnitsAlong::both ? across : units;
}

// The lines of a matrix along one extent: its units, or without any all lines there are.
class Lines {
 public:
  __device__ Lines(bool are_units, UnitMap const& units) : are_units_(are_units), units_(units) {}

  // The line behind that of a compact matrix; -1 where that is padding.
  __device__ int32_t line(int32_t place) const {
    return !are_units_ ? place : place < units_.count() ? units_.unit(place) : -1;
  }

  // Its inverse; -1 where the line is dropped.
  __device__ int32_t place(int32_t line) const { return are_units_ ? units_.place(line) : line; }

 private:
  bool are_units_;
  UnitMap units_;
};

template <class Array, int kMost>
struct Params {
  Array arrays[kMost];
  UnitMap units;
  UnitMap across;

  __device__ Lines rows(UnitsAlong along) const { return {are_along_rows(along), units}; }
  __device__ Lines cols(UnitsAlong along) const {
    return {are_along_cols(along), along == UnitsAlong::both ? across : units};
  }
};

inline dim3 grid_of(int64_t most_vectors, int64_t per_cta, int count) {
  return dim3(unsigned(std::min(ceil_div(most_vectors, per_cta), kMaxCtas)), unsigned(count));
}

inline bool is_aligned(void const* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

}  // namespace sparsedrop::live_units
