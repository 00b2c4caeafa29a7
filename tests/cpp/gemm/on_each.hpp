// What the tests of products without a GPU share: problems, and the architectures of this build.

#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

// Never read: these tests launch nothing.
alignas(16) inline char kMemory[32];
inline uint32_t const kWords[1] = {0};

inline Mask mask(int32_t block_rows, int32_t block_cols) {
  return {kWords, kWords, block_rows, block_cols};
}

inline Problem problem(int64_t m, int64_t n, int64_t k) {
  Problem p;
  p.m = m;
  p.n = n;
  p.k = k;
  p.a = {kMemory, k, Order::row_major};
  p.b = {kMemory, n, Order::row_major};
  p.d = kMemory;
  p.d_ld = n;
  return p;
}

inline std::string reason(Problem const& p, Choice choice) {
  char const* text = refusal(p, choice);
  return text == nullptr ? "" : text;
}

inline std::vector<Architecture> all_architectures() {
  std::vector<Architecture> all;
  for (int i = 0; i < architecture_count(); ++i) {
    all.push_back(architecture(i));
  }
  return all;
}

// Tests for each architecture of this build. Their first three tiles are alike.
class OnEach : public testing::TestWithParam<Architecture> {
 protected:
  Choice way(int tile, bool swap, int split_k = 1) const {
    return {tile, swap, split_k, GetParam()};
  }
  int tiles() const { return tile_count(GetParam()); }
  Tile tile_of(int id) const { return tile(GetParam(), id); }
  Limits own_limits() const { return limits(GetParam()); }

  template <class Change>
  std::string reason_after(Change change) const {
    Problem p = problem(256, 512, 128);
    change(p);
    return reason(p, way(0, false));
  }
};

}  // namespace sparsedrop
