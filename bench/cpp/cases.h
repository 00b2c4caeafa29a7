// What is measured: the products of a training step of Y = (X ∘ M_X) Wᵀ in bf16, and in fp32 by
// TF32, by every legal tile.
//
// X is [m, k], W is [n, k] and dY is [m, n], all row-major. Masks are of 128×128 blocks; M_Y, in
// the product "both", is of 128×256.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop::bench {

struct Extents {
  int64_t m;
  int64_t n;
  int64_t k;
};

enum class Product { forward, dx, dw, both };

struct Case {
  DataType type;
  Product product;
  Extents extents;
  double p;
  Choice choice;

  std::string name() const;
};

// Device addresses of the operands and the result.
struct Matrices {
  void const* x;
  void const* w;
  void const* dy;
  void* out;
};

// The masks of X and Y; the latter is null words where there is none.
struct Masks {
  Mask x;
  Mask y;
};

// A grid of blocks as it is drawn on the host.
struct Grid {
  int64_t rows;  // of the matrix
  int64_t cols;
  int32_t block_rows;
  int32_t block_cols;
  std::vector<uint8_t> live;  // row-major [grid_rows(), grid_cols()]

  int64_t grid_rows() const { return (rows + block_rows - 1) / block_rows; }
  int64_t grid_cols() const { return (cols + block_cols - 1) / block_cols; }

  // Live elements in a row of block row `r`, and its rows.
  int64_t live_cols(int64_t r) const;
  int64_t rows_of(int64_t r) const;
};

// Every shape, rate and product with every tile and orientation that can run it, whole and split
// along k.
std::vector<Case> all_cases();

// The masks that a case draws, block by block with probability p of being dropped: X's, and for
// `both` also Y's. At p = 0 all is live.
std::vector<Grid> draw(Case const& c, uint32_t seed);

// The product as the library takes it.
Problem describe(DataType type, Product product, Extents const& extents, Matrices const& data,
                 Masks const& masks);

// The dense problem that has only the live extent, rounded to a multiple of 128.
Extents shrunk(Product product, Extents const& extents, double p);

// Multiplications and additions of the dense product, and of the live part of it.
double dense_flops(Extents const& extents);
double live_flops(Case const& c, std::vector<Grid> const& grids);

}  // namespace sparsedrop::bench
