#include "gemm/product.hpp"

namespace sparsedrop {
namespace {

Lines lines(uint32_t const* words, int64_t extent, int32_t block) {
  return words == nullptr ? Lines{} : Lines{words, mask_line_words(extent), block};
}

}  // namespace

Product orient(Problem const& p, bool swap) {
  bool const a_k_major = p.a.order == Order::row_major;
  bool const b_k_major = p.b.order == Order::col_major;
  Lines const a_rows = lines(p.a_mask.row_words, p.k, p.a_mask.block_rows);
  Lines const b_cols = lines(p.b_mask.col_words, p.k, p.b_mask.block_cols);
  Lines const d_rows = lines(p.d_mask.row_words, p.n, p.d_mask.block_rows);
  Lines const d_cols = lines(p.d_mask.col_words, p.m, p.d_mask.block_cols);
  Operand const a{p.a.data, p.a.ld, a_k_major};
  Operand const b{p.b.data, p.b.ld, b_k_major};
  if (swap) {
    return {p.dtype, p.n,    p.m,    p.k,    b,      a,       p.d,         p.d_ld,
            false,   b_cols, a_rows, d_cols, p.bias, p.alpha, p.activation};
  }
  return {p.dtype, p.m,    p.n,    p.k,    a,      b,       p.d,         p.d_ld,
          true,    a_rows, b_cols, d_rows, p.bias, p.alpha, p.activation};
}

}  // namespace sparsedrop
