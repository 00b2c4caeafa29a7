#include "gemm/product.hpp"

#include <utility>

namespace sparsedrop {
namespace {

Lines lines(uint32_t const* words, int64_t extent, int32_t block) {
  return words == nullptr ? Lines{} : Lines{words, mask_line_words(extent), block};
}

}  // namespace

Product orient(Problem const& p, bool swap) {
  Lines const a_rows = lines(p.a_mask.row_words, p.k, p.a_mask.block_rows);
  Lines const b_cols = lines(p.b_mask.col_words, p.k, p.b_mask.block_cols);
  Lines const d_rows = lines(p.d_mask.row_words, p.n, p.d_mask.block_rows);
  Lines const d_cols = lines(p.d_mask.col_words, p.m, p.d_mask.block_cols);
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
                  p.activation};
  if (swap) {
    std::swap(product.m, product.n);
    std::swap(product.a, product.b);
    std::swap(product.a_lines, product.b_lines);
  }
  return product;
}

}  // namespace sparsedrop
