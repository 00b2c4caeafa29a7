// On a GPU: every product with masks, bias and activation is exact, on each architecture, in every
// layout, by every tile, orientation and split; and what is dropped is not read.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
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
constexpr int32_t kBlock = 256;  // a whole number of every tile but that of 128x192

struct Case {
  int64_t m;
  int64_t n;
  int64_t k;
  bool masks_a;
  bool masks_b;
  bool masks_d;
  Activation activation = Activation::none;
  bool has_bias = true;
};

// Block row 1 is dropped as a whole where there is one: a line without live K tiles, or slots.
LiveGrid draw_grid(Blocking const& by, std::mt19937& engine) {
  LiveGrid grid{by, {}};
  int64_t const across = ceil_div(by.cols, by.block_cols);
  for (int64_t i = 0; i < ceil_div(by.rows, by.block_rows) * across; ++i) {
    grid.live.push_back(i / across == 1 ? 0 : uint8_t(engine() % 2));
  }
  return grid;
}

// A matrix as it lies in memory, its lines `padding` apart: values of -1, 0 and 1, zeros where it
// is dropped for the truth, and NaN there and behind its lines for the kernel.
struct Operand {
  std::vector<float> zeroed;  // [rows, cols]
  Matrix matrix;
};

template <class Element>
Operand draw_operand(int64_t rows, int64_t cols, Order order, LiveGrid const& grid,
                     std::mt19937& engine) {
  bool const is_row_major = order == Order::row_major;
  int64_t const ld = (is_row_major ? cols : rows) + 8;
  Operand operand{std::vector<float>(size_t(rows * cols)), {nullptr, ld, order}};
  std::vector<float> poisoned(size_t(ld * (is_row_major ? rows : cols)), kNaN);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      float const value = float(int(engine() % 3) - 1);
      if (grid.has(r, c)) {
        operand.zeroed[size_t(r * cols + c)] = value;
        poisoned[size_t(is_row_major ? r * ld + c : c * ld + r)] = value;
      }
    }
  }
  operand.matrix.data = rounded_to_device<Element>(poisoned);
  return operand;
}

struct Drawn {
  Problem problem;                    // but for D
  std::vector<float> pre_activation;  // [m, n]
  std::vector<float> truth;           // [m, n]
  LiveGrid d_grid;
};

template <class Element>
constexpr DataType dtype_of() {
  return std::is_same<Element, float>::value    ? DataType::fp32
         : std::is_same<Element, __half>::value ? DataType::fp16
                                                : DataType::bf16;
}

template <class Element>
Drawn draw_product(Case const& c, Order a_order, Order b_order) {
  std::mt19937 engine(uint32_t(c.m + 3 * c.n + 7 * c.k));
  LiveGrid a_grid, b_grid, d_grid;
  if (c.masks_a) {
    a_grid = draw_grid({c.m, c.k, kBlock, kMaskUnit}, engine);
  }
  if (c.masks_b) {
    b_grid = draw_grid({c.k, c.n, kMaskUnit, kBlock}, engine);
  }
  if (c.masks_d) {
    d_grid = draw_grid({c.m, c.n, kBlock, kBlock}, engine);
  }
  Operand const a = draw_operand<Element>(c.m, c.k, a_order, a_grid, engine);
  Operand const b = draw_operand<Element>(c.k, c.n, b_order, b_grid, engine);
  std::vector<float> bias;
  for (int64_t j = 0; j < c.n; ++j) {
    bias.push_back(c.has_bias ? float(int(engine() % 5) - 2) : 0.0f);
  }
  Drawn drawn{{}, {}, {}, d_grid};
  for (int64_t i = 0; i < c.m; ++i) {
    std::vector<float> row = bias;
    for (int64_t l = 0; l < c.k; ++l) {
      float const left = kAlpha * a.zeroed[size_t(i * c.k + l)];
      for (int64_t j = 0; left != 0.0f && j < c.n; ++j) {
        row[size_t(j)] += left * b.zeroed[size_t(l * c.n + j)];
      }
    }
    for (int64_t j = 0; j < c.n; ++j) {
      float const value = row[size_t(j)];
      bool const is_relu = c.activation == Activation::relu;
      drawn.pre_activation.push_back(value);
      drawn.truth.push_back(!d_grid.has(i, j) ? 0.0f : is_relu ? std::max(value, 0.0f) : value);
    }
  }
  Problem& p = drawn.problem;
  p.dtype = dtype_of<Element>();
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = a.matrix;
  p.b = b.matrix;
  p.a_mask = mask_of(a_grid);
  p.b_mask = mask_of(b_grid);
  p.d_mask = mask_of(d_grid);
  p.bias = c.has_bias ? rounded_to_device<Element>(bias) : nullptr;
  p.alpha = kAlpha;
  p.activation = c.activation;
  p.d_ld = c.n + 8;
  return drawn;
}

// D, or the pre-activation, comes poisoned: every element has to be written.
template <class Element>
Element* poisoned_result(Problem const& p) {
  std::vector<float> d(size_t(p.m * p.d_ld), kBehind);
  for (int64_t row = 0; row < p.m; ++row) {
    std::fill_n(d.begin() + row * p.d_ld, p.n, kNaN);
  }
  return rounded_to_device<Element>(d);
}

template <class Element>
std::vector<float> fetch(Element* data, size_t count) {
  std::vector<Element> const values = to_host(data, count);
  std::vector<float> floats;
  for (Element const& value : values) {
    floats.push_back(float(value));
  }
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  return floats;
}

// Twice: what a launch leaves in its workspace must not disturb the next.
template <class Element>
std::vector<float> run(Problem& p, Choice const& choice, Element* pre_activation) {
  Element* const d = poisoned_result<Element>(p);
  p.d = d;
  p.pre_activation = pre_activation;
  char const* const reason = refusal(p, choice);
  EXPECT_EQ(reason, nullptr) << reason;
  char* const workspace = to_device(std::vector<char>(workspace_bytes(p, choice) + 16, 'x'));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(matmul(p, choice, workspace, nullptr), cudaSuccess);
  }
  std::vector<float> result = fetch(d, size_t(p.m * p.d_ld));
  EXPECT_EQ(cudaFree(workspace), cudaSuccess);
  return result;
}

class MaskedProduct : public OnEachKernels {
 protected:
  template <class Element>
  void run_every_way(Case const& c) const {
    for (Order const a_order : {Order::row_major, Order::col_major}) {
      for (Order const b_order : {Order::row_major, Order::col_major}) {
        run_orders<Element>(c, a_order, b_order);
      }
    }
  }

  template <class Element>
  void run_orders(Case const& c, Order a_order, Order b_order) const {
    Drawn const drawn = draw_product<Element>(c, a_order, b_order);
    bool const may_split = !c.masks_d && c.activation == Activation::none;
    for (Choice const& choice : all_choices(drawn.problem.dtype, may_split ? kMaxSplit : 1)) {
      Tile const t = tile(choice.architecture, choice.tile);
      if (kBlock % t.n != 0 && (c.masks_a || c.masks_b || c.masks_d)) {
        continue;
      }
      SCOPED_TRACE(describe(choice) + ", A by " +
                   (a_order == Order::row_major ? "rows" : "columns") + ", B by " +
                   (b_order == Order::row_major ? "rows" : "columns"));
      ASSERT_NO_FATAL_FAILURE(check<Element>(drawn, choice));
    }
  }

  template <class Element>
  static void check(Drawn const& drawn, Choice const& choice) {
    Problem p = drawn.problem;
    std::vector<float> const d = run<Element>(p, choice, nullptr);
    for (int64_t row = 0; row < p.m; ++row) {
      for (int64_t col = 0; col < p.d_ld; ++col) {
        float const expected = col < p.n ? drawn.truth[size_t(row * p.n + col)] : kBehind;
        ASSERT_EQ(d[size_t(row * p.d_ld + col)], expected) << "row " << row << ", column " << col;
      }
    }
  }

  void run_all_types(Case const& c) const {
    run_every_way<__nv_bfloat16>(c);
    run_every_way<__half>(c);
    run_every_way<float>(c);
  }
};

INSTANTIATE_ON_EACH(MaskedProduct);

TEST_P(MaskedProduct, IsExactWithoutMasks) {
  run_all_types({8, 8, 8, false, false, false});
  run_all_types({200, 328, 104, false, false, false});
}

TEST_P(MaskedProduct, IsExactWithAMaskOnEitherOperand) {
  run_all_types({520, 328, 200, true, false, false});
  run_all_types({328, 520, 200, false, true, false});
}

// k in several words of a mask, and in more stages than there are.
TEST_P(MaskedProduct, IsExactAlongALongK) {
  // Without a bias every sum is even, and exact in bf16 up to 512.
  run_all_types({136, 264, 2120, true, true, false, Activation::none, false});
  run_all_types({136, 264, 4168, false, true, false, Activation::none, false});
}

// Of an odd extent that is contiguous nowhere but, either way round, in the kernels' tiles.
TEST_P(MaskedProduct, IsExactWithOddExtents) {
  Case const odd_m{203, 328, 136, true, false, true};
  run_orders<__nv_bfloat16>(odd_m, Order::row_major, Order::row_major);
  run_orders<float>(odd_m, Order::row_major, Order::col_major);
  Case const odd_k{328, 200, 77, true, true, false};
  run_orders<__nv_bfloat16>(odd_k, Order::col_major, Order::row_major);
  run_orders<float>(odd_k, Order::col_major, Order::row_major);
}

TEST_P(MaskedProduct, IsExactWithAMaskOnTheResult) {
  run_all_types({520, 776, 72, false, false, true});
}

TEST_P(MaskedProduct, IsExactWithAllMasks) {
  run_all_types({776, 776, 136, true, false, true});
  run_all_types({776, 776, 136, true, true, true});
}

TEST_P(MaskedProduct, IsExactWithAnActivation) {
  run_all_types({520, 328, 136, true, false, true, Activation::relu});
  run_every_way<__nv_bfloat16>({200, 328, 72, false, false, false, Activation::relu, false});
}

TEST_P(MaskedProduct, IsExactInManyTilesForEachCta) {
  run_every_way<__nv_bfloat16>({4104, 4104, 72, true, false, true});
}

// More lines than a CTA orders itself.
TEST_P(MaskedProduct, IsExactByAList) {
  run_every_way<__nv_bfloat16>({33032, 136, 72, true, false, false});
}

// gelu and silu are tested against torch; here that what they are taken of is what is kept.
TEST_P(MaskedProduct, KeepsThePreActivation) {
  for (Choice const& choice : all_choices(DataType::bf16, 1)) {
    if (tile(choice.architecture, choice.tile).n == 192) {
      continue;
    }
    SCOPED_TRACE(describe(choice));
    Drawn const drawn = draw_product<__nv_bfloat16>(
        {520, 328, 104, true, false, true, Activation::gelu}, Order::row_major, Order::col_major);
    Problem p = drawn.problem;
    auto* const kept = poisoned_result<__nv_bfloat16>(p);
    run(p, choice, kept);
    std::vector<float> const pre_activation = fetch(kept, size_t(p.m * p.d_ld));
    for (int64_t row = 0; row < p.m; ++row) {
      for (int64_t col = 0; col < p.n; ++col) {
        if (drawn.d_grid.has(row, col)) {
          ASSERT_EQ(pre_activation[size_t(row * p.d_ld + col)],
                    drawn.pre_activation[size_t(row * p.n + col)])
              << "row " << row << ", column " << col;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
