// Dense products on the host, of small whole numbers: exact in any order.

#pragma once

#include <cstdint>
#include <vector>

#include "bindings/blas.hpp"

namespace sparsedrop {

// What cuBLAS would do; T is the dtype of all matrices.
template <class T>
void multiply_on_host(DenseProduct const& p) {
  auto const at = [](Factor const& of, int64_t row, int64_t col) {
    auto const* const data = static_cast<T const*>(of.data);
    return of.is_transposed ? data[col * of.ld + row] : data[row * of.ld + col];
  };
  auto* const out = static_cast<T*>(p.out);
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      T sum = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += at(p.a, i, k) * at(p.b, k, j);
      }
      T& to = out[i * p.out_ld + j];
      to = T(p.alpha) * sum + (p.beta == 0.0 ? T(0) : T(p.beta) * to);
      to += p.bias == nullptr ? T(0) : static_cast<T const*>(p.bias)[j];
    }
  }
}

template <class T>
std::vector<T> numbers(int64_t count, int seed) {
  std::vector<T> found;
  for (int64_t i = 0; i < count; ++i) {
    found.push_back(T((seed + 7 * i) % 11) - T(5));
  }
  return found;
}

}  // namespace sparsedrop
