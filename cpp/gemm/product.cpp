#include "gemm/product.hpp"

#include <utility>

namespace sparsedrop {
namespace {

// By the rows or by the columns of a mask, if it is one.
Lines row_lines(Mask const& mask, int64_t cols) {
  return mask.row_words == nullptr ? Lines{}
                                   : Lines{mask.row_words, mask_line_words(cols), mask.block_rows};
}
Lines col_lines(Mask const& mask, int64_t rows) {
  return mask.row_words == nullptr ? Lines{}
                                   : Lines{mask.col_words, mask_line_words(rows), mask.block_cols};
}

}  // namespace

Product orient(Problem const& p, bool swap) {
  Lines const a_rows = row_lines(p.a_mask, p.k);
  Lines const b_cols = col_lines(p.b_mask, p.k);
  Lines const d_rows = row_lines(p.d_mask, p.n);
  Lines const d_cols = col_lines(p.d_mask, p.m);
  Product product{p.m,
                  p.n,
                  p.k,
                  {p.a.data, p.a.ld, p.a.order == Order::row_major},
                  {p.b.data, p.b.ld, p.b.order == Order::col_major},
                  p.d,
                  p.pre_activation,
                  p.d_ld,
                  !swap,
                  a_rows,
                  b_cols,
                  swap ? d_cols : d_rows,
                  p.bias,
                  p.alpha,
                  p.activation,
                  {}};
  if (swap) {
    std::swap(product.m, product.n);
    std::swap(product.a, product.b);
    std::swap(product.a_lines, product.b_lines);
  }
  return product;
}

}  // namespace sparsedrop
