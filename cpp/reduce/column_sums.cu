// Sums of the columns of a masked matrix: the gradient of a bias.

#include "reduce/columns.hpp"

namespace sparsedrop {
namespace {

template <class Element_>
struct Values {
  using Element = Element_;
  static constexpr int kMatrices = 1;

  Element const* data;
  int64_t ld;

  __device__ Element const* vector(int, int64_t row, int64_t col) const {
    return data + row * ld + col;
  }

  __device__ void take(uint4 const (&read)[kMatrices], int64_t, int64_t,
                       float (&values)[kVector]) const {
    auto const* const elements = reinterpret_cast<Element const*>(&read[0]);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      values[v] = to_float(elements[v]);
    }
  }
};

template <class Element>
cudaError_t launch(Matrix const& matrix, int64_t rows, int64_t cols, Mask const& mask, void* out,
                   cudaStream_t stream) {
  Values<Element> const values{static_cast<Element const*>(matrix.data), matrix.ld};
  return launch_columns(values, rows, cols, mask, out, stream);
}

}  // namespace

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, void* out, cudaStream_t stream) {
  if (!has_vectors(matrix) || out == nullptr) {
    return cudaErrorInvalidValue;
  }
  switch (dtype) {
    case DataType::bf16:
      return launch<__nv_bfloat16>(matrix, rows, cols, mask, out, stream);
    case DataType::fp16:
      return launch<__half>(matrix, rows, cols, mask, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
