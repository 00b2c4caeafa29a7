#include "gemm/product.hpp"

#include <utility>

namespace sparsedrop {
namespace {

MaskLines row_lines(Mask const& mask, int64_t cols) {
  return is_mask(mask) ? MaskLines{mask.row_words, mask_line_words(cols), mask.block_rows}
                       : MaskLines{};
}

MaskLines col_lines(Mask const& mask, int64_t rows) {
  return is_mask(mask) ? MaskLines{mask.col_words, mask_line_words(rows), mask.block_cols}
                       : MaskLines{};
}

}  // namespace

Product orient(Problem const& p, bool swap) {
  Product product{p.dtype,
                  p.m,
                  p.n,
                  p.k,
                  {p.a.data, p.a.ld, p.a.order == Order::row_major},
                  {p.b.data, p.b.ld, p.b.order == Order::col_major},
                  p.d,
                  p.pre_activation,
                  p.d_ld,
                  !swap,
                  row_lines(p.a_mask, p.k),
                  col_lines(p.b_mask, p.k),
                  swap ? col_lines(p.d_mask, p.m) : row_lines(p.d_mask, p.n),
                  swap ? p.d_mask.block_rows : p.d_mask.block_cols,
                  p.bias,
                  p.alpha,
                  p.activation,
                  p.d_is_fp32,
                  p.accumulates};
  if (swap) {
    std::swap(product.m, product.n);
    std::swap(product.a, product.b);
    std::swap(product.a_lines, product.b_lines);
  }
  return product;
}

}  // namespace sparsedrop
