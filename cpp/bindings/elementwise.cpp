// Masks, masked copies and column sums for Python.

#include "bindings/bind.hpp"
#include "bindings/call.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

std::string describe(Blocking const& blocking) {
  return "a [" + std::to_string(blocking.rows) + ", " + std::to_string(blocking.cols) +
         "] matrix in blocks of " + std::to_string(blocking.block_rows) + "x" +
         std::to_string(blocking.block_cols);
}

void call_mask_words(uintptr_t live, int64_t rows, int64_t cols, int32_t block_rows,
                     int32_t block_cols, uintptr_t row_words, uintptr_t col_words, int device,
                     uintptr_t stream) {
  Blocking const blocking{rows, cols, block_rows, block_cols};
  OnDevice const guard(device);
  check(mask_words(at<uint8_t const>(live), blocking, at<uint32_t>(row_words),
                   at<uint32_t>(col_words), at<CUstream_st>(stream)),
        [&] { return "sparsedrop.mask_words for " + describe(blocking); });
}

void call_bernoulli_mask(double keep, uint64_t seed, uint64_t offset, int64_t rows, int64_t cols,
                         int32_t block_rows, int32_t block_cols, uintptr_t live,
                         uintptr_t row_words, uintptr_t col_words, int device, uintptr_t stream) {
  Blocking const blocking{rows, cols, block_rows, block_cols};
  OnDevice const guard(device);
  check(bernoulli_mask({keep, seed, offset}, blocking, at<uint8_t>(live), at<uint32_t>(row_words),
                       at<uint32_t>(col_words), at<CUstream_st>(stream)),
        [&] {
          return "sparsedrop.bernoulli_mask for " + describe(blocking) + ", keeping " +
                 std::to_string(keep) + ", offset " + std::to_string(offset);
        });
}

void call_balanced_live(uintptr_t keys, int64_t grid_rows, int64_t grid_cols, int64_t count,
                        uintptr_t live, int device, uintptr_t stream) {
  OnDevice const guard(device);
  check(balanced_live(at<int32_t const>(keys), grid_rows, grid_cols, count, at<uint8_t>(live),
                      at<CUstream_st>(stream)),
        [&] {
          return "sparsedrop.balanced_live for a grid of [" + std::to_string(grid_rows) + ", " +
                 std::to_string(grid_cols) + "] blocks, keeping " + std::to_string(count) +
                 " a row";
        });
}

void call_column_sums(int dtype, uintptr_t data, int64_t rows, int64_t cols, int64_t ld,
                      uintptr_t row_words, uintptr_t col_words, int32_t block_rows,
                      int32_t block_cols, uintptr_t out, int out_dtype, bool accumulates,
                      int device, uintptr_t stream) {
  Matrix const matrix{at<void const>(data), ld, Order::row_major};
  Mask const mask{at<uint32_t const>(row_words), at<uint32_t const>(col_words), block_rows,
                  block_cols};
  Sums const sums{at<void>(out), DataType(out_dtype), accumulates};
  OnDevice const guard(device);
  check(column_sums(DataType(dtype), matrix, rows, cols, mask, sums, at<CUstream_st>(stream)), [&] {
    return "sparsedrop.column_sums for a [" + std::to_string(rows) + ", " + std::to_string(cols) +
           "] matrix, ld=" + std::to_string(ld);
  });
}

void call_masked_copy(int in_dtype, uintptr_t in, int64_t in_ld, int out_dtype, uintptr_t out,
                      int64_t out_ld, Blocking const& blocking, uintptr_t live,
                      int64_t live_row_stride, int64_t live_col_stride, double factor, int device,
                      uintptr_t stream) {
  MaskedCopy const copy{DataType(in_dtype),
                        DataType(out_dtype),
                        at<void const>(in),
                        in_ld,
                        at<void>(out),
                        out_ld,
                        blocking,
                        at<uint8_t const>(live),
                        live_row_stride,
                        live_col_stride,
                        factor};
  OnDevice const guard(device);
  check(masked_copy(copy, at<CUstream_st>(stream)),
        [&] { return "sparsedrop.masked_copy for " + describe(blocking); });
}

}  // namespace

void bind_elementwise(pybind11::module_& module) {
  module.def("mask_words", &call_mask_words);
  module.def("bernoulli_mask", &call_bernoulli_mask);
  module.def("balanced_live", &call_balanced_live);
  module.def("column_sums", &call_column_sums);
  module.def("masked_copy",
             [](int in_dtype, uintptr_t in, int64_t in_ld, int out_dtype, uintptr_t out,
                int64_t out_ld, int64_t rows, int64_t cols, int32_t block_rows, int32_t block_cols,
                uintptr_t live, int64_t live_row_stride, int64_t live_col_stride, double factor,
                int device, uintptr_t stream) {
               call_masked_copy(in_dtype, in, in_ld, out_dtype, out, out_ld,
                                {rows, cols, block_rows, block_cols}, live, live_row_stride,
                                live_col_stride, factor, device, stream);
             });
}

}  // namespace sparsedrop
