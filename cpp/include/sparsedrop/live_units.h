// For layers of which some units are live in a step and the others are left out of all products: a
// slice of neighbours, or one in every so many. A compact matrix holds live units only, in their
// order; weights and their gradients lie whole. As in sparsedrop.h nothing here allocates,
// synchronises or throws, and every function is one launch on the stream it is given.

#pragma once

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// `count` units in one part or two: `first_count` of them are every `step`-th from `first` on, the
// others every `step`-th from `second` on. A slice that wraps around the end has two parts. No unit
// is in both.
struct LiveUnits {
  int64_t count = 0;
  int64_t step = 1;
  int64_t first = 0;
  int64_t first_count = 0;
  int64_t second = 0;
};

// Along which extents of a matrix its units lie. `both`: the rows are units, and the columns are
// those of another layer, `across`.
enum class UnitsAlong { neither = 0, rows = 1, cols = 2, both = 3 };

// A row-major matrix of fp32 or of the result's type, of which the live units are copied to a
// compact one, times a factor; all of it, where units lie along neither extent. `rows` and `cols`
// are those of the result, which has fewer than 2^31 elements: as many as there are live units, or
// more, which are padding and become 0. Fastest where base pointers are 16-byte aligned and
// columns, leading dimensions and, along columns, the parts are multiples of 4.
struct Gathering {
  void const* from;
  DataType from_dtype;
  int64_t from_ld;
  void* to;
  int64_t to_ld;
  int64_t rows;
  int64_t cols;
  UnitsAlong along;
  float factor = 1.0f;
};

constexpr int kMaxGatherings = 8;

// Gathers kMaxGatherings matrices at most, rounded to bf16 or fp16, or fp32 as they are.
cudaError_t gather_units(DataType dtype, LiveUnits const& units, Gathering const* arrays, int count,
                         cudaStream_t stream, LiveUnits const& across = {});

// What becomes of the dropped units of a whole matrix.
enum class Dropped { zeroed = 0, kept = 1 };

// A whole row-major matrix without gaps, of bf16, fp16 or fp32 and fewer than 2^31 elements. Its
// live units come from a compact one, of fp32, of the same dtype, or of 16 bits for fp32, times a
// factor; or stay as they are, where `live` is null. The compact one's leading dimension is
// `live_ld`, or where that is 0 the number of its columns. Fastest where base pointers are 32-byte
// aligned, and columns, leading dimensions, and along columns the parts, are multiples of 8.
struct Filling {
  void* to;
  DataType dtype;
  int64_t rows;
  int64_t cols;
  UnitsAlong along;
  void const* live = nullptr;
  DataType live_dtype = DataType::fp32;
  float factor = 1.0f;
  Dropped dropped = Dropped::zeroed;
  int64_t live_ld = 0;
};

constexpr int kMaxFillings = 8;

// Fills kMaxFillings matrices at most, whose units lie along rows, columns or both.
cudaError_t fill_units(LiveUnits const& units, Filling const* arrays, int count,
                       cudaStream_t stream, LiveUnits const& across = {});

// Added to what `pointwise` reads as a and b, in fp32: one number a unit, all units' in a row, of
// the matrices' dtype or fp32; or null. Matrices are compact, their columns from units.count on are
// padding.
struct UnitBiases {
  void const* a = nullptr;
  void const* b = nullptr;
  DataType dtype = DataType::fp32;
  LiveUnits units;
};

// `pointwise` with biases, of any kind but `add`.
cudaError_t pointwise(Pointwise const& call, UnitBiases const& biases, cudaStream_t stream);

}  // namespace sparsedrop
