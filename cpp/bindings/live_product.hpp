// A dense product of which one extent may be a layer's live units: which of its matrices are
// compact along it, and what cuBLAS is then called with, part by part.

#pragma once

#include <cstdint>
#include <vector>

#include "bindings/blas.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {

enum class Extent { none = -1, m = 0, n = 1, k = 2 };

// A matrix of a product, without its address. Transposed, its rows lie one behind the other in the
// place of its columns. A whole one has all units along the live extent, a compact one those that
// are live.
struct Lie {
  int64_t ld;
  bool is_transposed = false;
  bool is_whole = false;
};

// Extents m, n and k; the live one is the number of live units.
struct Shape {
  int64_t m;
  int64_t n;
  int64_t k;
  Lie a;
  Lie b;
  Lie out;
  Extent live = Extent::none;
};

// The products to run one after the other, for `whole`, the product without extents and leading
// dimensions; along live units a bias is compact. std::invalid_argument where units that are no
// neighbours lie along the contiguous extent of a matrix.
std::vector<DenseProduct> parts_of(Shape const& shape, LiveUnits const& units,
                                   DenseProduct const& whole);

}  // namespace sparsedrop
