// cuBLAS as torch has loaded it: found at run time, so that nothing links it, and called with
// torch's handle, which has torch's stream, workspace and settings.

#pragma once

#include <cstdint>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// Looks up that release of cuBLAS; false unless it is loaded in this process.
bool load_blas(int release);

// A row-major matrix, or its transpose.
struct Factor {
  void const* data;
  int64_t ld;
  bool is_transposed;
};

// out [m, n] = alpha · a [m, k] b [k, n] + beta · out, row-major.
struct DenseProduct {
  int64_t m;
  int64_t n;
  int64_t k;
  Factor a;
  Factor b;
  DataType dtype;  // of a and b
  void* out;
  int64_t out_ld;
  DataType out_dtype;
  double alpha;
  double beta;
};

// How torch is told to multiply: its handle, and whether parts of a sum may be added in 16 bits.
struct BlasSettings {
  void* handle;
  bool allows_narrow_sums;
};

// std::runtime_error with cuBLAS's number for it where the product fails.
void multiply(DenseProduct const& product, BlasSettings const& settings);

}  // namespace sparsedrop
