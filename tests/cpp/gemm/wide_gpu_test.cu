// On a GPU: D in fp32 has the exact product, and the exact sum where it is added to, whatever the
// tile, orientation and split.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "common/host_device.hpp"
#include "device_memory.hpp"
#include "gemm/operands.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr float kAlpha = 2.0f;
constexpr float kBehind = 42.0f;  // stands behind the rows of D
constexpr int kMaxSplit = 3;
constexpr int32_t kBlock = 768;  // a whole number of every tile

enum class Dropped { row, column };

// The second row, or column, of blocks is dropped, and every other block with probability 0.5.
LiveGrid draw_grid(Blocking const& by, Dropped second, std::mt19937& engine) {
  LiveGrid grid{by, {}};
  int64_t const across = ceil_div(by.cols, by.block_cols);
  for (int64_t i = 0; i < ceil_div(by.rows, by.block_rows) * across; ++i) {
    bool const is_second = (second == Dropped::row ? i / across : i % across) == 1;
    grid.live.push_back(is_second ? 0 : uint8_t(engine() % 2));
  }
  return grid;
}

// An operand as it lies, k rows of `extent` values of -1, 0 and 1: with zeros where it is dropped,
// for the truth, and with NaN there and behind its rows, for the kernel.
struct Drawn {
  std::vector<float> zeroed;    // [k, extent]
  std::vector<float> poisoned;  // [k, ld]
};

template <class IsLive>
Drawn draw(int64_t k, int64_t extent, int64_t ld, std::mt19937& engine, IsLive const& is_live) {
  Drawn drawn{{}, std::vector<float>(size_t(k * ld), kNaN)};
  for (int64_t l = 0; l < k; ++l) {
    for (int64_t i = 0; i < extent; ++i) {
      bool const lives = is_live(l, i);
      drawn.zeroed.push_back(lives ? float(int(engine() % 3) - 1) : 0.0f);
      if (lives) {
        drawn.poisoned[size_t(l * ld + i)] = drawn.zeroed.back();
      }
    }
  }
  return drawn;
}

struct Shape {
  int64_t m;
  int64_t n;
  int64_t k;
};

struct Gradient {
  Problem problem;           // but for D
  std::vector<float> truth;  // [m, n]
};

// A weight gradient: A [m, k] and B [k, n] lie by rows of k, as dY and X do.
template <class Element>
Gradient make_gradient(Shape const& shape, bool has_masks) {
  auto const [m, n, k] = shape;
  std::mt19937 engine(uint32_t(m + n + k));
  LiveGrid a_grid, b_grid;
  if (has_masks) {
    a_grid = draw_grid({m, k, kBlock, kMaskUnit}, Dropped::row, engine);
    b_grid = draw_grid({k, n, kMaskUnit, kBlock}, Dropped::column, engine);
  }
  int64_t const a_ld = m + 8, b_ld = n + 16;
  Drawn const a = draw(k, m, a_ld, engine, [&](int64_t l, int64_t i) { return a_grid.has(i, l); });
  Drawn const b = draw(k, n, b_ld, engine, [&](int64_t l, int64_t j) { return b_grid.has(l, j); });
  Gradient gradient{{}, std::vector<float>(size_t(m * n), 0.0f)};
  for (int64_t i = 0; i < m; ++i) {
    float* const row = gradient.truth.data() + i * n;
    for (int64_t l = 0; l < k; ++l) {
      float const left = kAlpha * a.zeroed[size_t(l * m + i)];
      float const* const right = b.zeroed.data() + l * n;
      for (int64_t j = 0; j < n; ++j) {
        row[j] += left * right[j];
      }
    }
  }
  Problem& p = gradient.problem;
  p.dtype = std::is_same<Element, __half>::value ? DataType::fp16 : DataType::bf16;
  p.m = m;
  p.n = n;
  p.k = k;
  p.a = {rounded_to_device<Element>(a.poisoned), a_ld, Order::col_major};
  p.b = {rounded_to_device<Element>(b.poisoned), b_ld, Order::row_major};
  p.a_mask = mask_of(a_grid);
  p.b_mask = mask_of(b_grid);
  p.alpha = kAlpha;
  p.d_is_fp32 = true;
  p.d_ld = n + 4;  // rows begin at multiples of 16 bytes, and not of 32
  return gradient;
}

// Added up, two launches follow each other: the second finds what the first has written.
void run_and_check(Gradient const& gradient, Choice choice, bool accumulates) {
  Problem p = gradient.problem;
  p.accumulates = accumulates;
  auto const before = [&](int64_t row, int64_t col) {
    return accumulates ? float((row + 3 * col) % 7 - 3) : kNaN;
  };
  std::vector<float> d(size_t(p.m * p.d_ld), kBehind);
  for (int64_t row = 0; row < p.m; ++row) {
    for (int64_t col = 0; col < p.n; ++col) {
      d[size_t(row * p.d_ld + col)] = before(row, col);
    }
  }
  float* const on_device = to_device(d);
  p.d = on_device;
  char const* const reason = refusal(p, choice);
  ASSERT_EQ(reason, nullptr) << reason;
  char* const workspace = to_device(std::vector<char>(workspace_bytes(p, choice) + 16, 'x'));
  int const launches = accumulates ? 2 : 1;
  for (int i = 0; i < launches; ++i) {
    ASSERT_EQ(matmul(p, choice, workspace, nullptr), cudaSuccess);
  }
  d = to_host(on_device, d.size());
  EXPECT_EQ(cudaFree(on_device), cudaSuccess);
  EXPECT_EQ(cudaFree(workspace), cudaSuccess);
  for (int64_t row = 0; row < p.m; ++row) {
    for (int64_t col = 0; col < p.d_ld; ++col) {
      float expected = kBehind;
      if (col < p.n) {
        float const product = gradient.truth[size_t(row * p.n + col)];
        expected = accumulates ? before(row, col) + float(launches) * product : product;
      }
      ASSERT_EQ(d[size_t(row * p.d_ld + col)], expected) << "row " << row << ", column " << col;
    }
  }
}

class WideProduct : public OnEachKernels {
 protected:
  void run_every_way(Gradient const& gradient) const {
    for (Choice const& choice : all_choices(gradient.problem.dtype, kMaxSplit)) {
      for (bool accumulates : {false, true}) {
        SCOPED_TRACE(describe(choice) + (accumulates ? ", added to D" : ""));
        run_and_check(gradient, choice, accumulates);
      }
    }
  }
};

INSTANTIATE_ON_EACH(WideProduct);

TEST_P(WideProduct, IsExactInOneTileAndInRests) {
  run_every_way(make_gradient<__nv_bfloat16>({8, 8, 1}, false));
  run_every_way(make_gradient<__nv_bfloat16>({200, 328, 300}, false));
  run_every_way(make_gradient<__half>({328, 200, 300}, false));
}

TEST_P(WideProduct, IsExactWithMasks) {
  run_every_way(make_gradient<__nv_bfloat16>({1544, 1672, 330}, true));
  run_every_way(make_gradient<__half>({1000, 200, 1030}, true));
}

TEST_P(WideProduct, IsExactInManyTilesForEachCta) {
  run_every_way(make_gradient<__nv_bfloat16>({3080, 2056, 72}, false));
}

// More lines than a CTA orders itself.
TEST_P(WideProduct, IsExactByAList) {
  run_every_way(make_gradient<__nv_bfloat16>({33032, 136, 72}, false));
}

}  // namespace
}  // namespace sparsedrop
