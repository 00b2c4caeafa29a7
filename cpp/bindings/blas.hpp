// cuBLAS as torch has loaded it: found at run time, so that nothing links it, and called with
// torch's handle, which has torch's stream, workspace and settings.

#pragma once

#include <library_types.h>

#include <cstdint>
#include <string>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// Looks up that release of cuBLAS; false unless it is loaded in this process.
bool load_blas(int release);

// std::logic_error where it was not.
void require_blas();

// A row-major matrix, or its transpose.
struct Factor {
  void const* data;
  int64_t ld;
  bool is_transposed;
};

// out [m, n] = alpha · a [m, k] b [k, n] + beta · out + bias [n], row-major.
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
  void const* bias;  // of the result's dtype, or null
  bool tf32;         // whether fp32 may be multiplied so
};

cudaDataType cuda_type(DataType dtype);

// Bytes of an element.
constexpr int64_t size_of(DataType dtype) {
  switch (dtype) {
    case DataType::bf16:
    case DataType::fp16:
      return 2;
    case DataType::fp32:
      return 4;
    case DataType::fp64:
      break;
  }
  return 8;
}

// Such as "[4, 8] times [8, 2]".
std::string describe(DenseProduct const& product);

// How torch is told to multiply: its handle, and whether parts of a sum may be added in 16 bits.
struct BlasSettings {
  void* handle;
  bool allows_narrow_sums;
};

// Whether torch has told its handle to multiply fp32 as TF32.
bool multiplies_as_tf32(void* handle);

// A product without a bias, by the settings, of which `tf32` is one. std::runtime_error with
// cuBLAS's number for it where it fails.
void multiply(DenseProduct const& product, BlasSettings const& settings);

}  // namespace sparsedrop
