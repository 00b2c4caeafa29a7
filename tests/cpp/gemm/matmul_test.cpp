// What can run, and what is refused, in words.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gemm/on_each.hpp"
#include "schedule/tile_record.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

// Best first.
TEST(Architectures, AreInTheOrderOfTheirCapability) {
  std::vector<Architecture> const all = all_architectures();
  ASSERT_FALSE(all.empty());
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end(), std::greater<Architecture>()));
}

TEST(Architectures, RefuseWhereTheyAreNotBuilt) {
  Problem const p = problem(256, 512, 128);
  EXPECT_NE(reason(p, {0, false, 1, Architecture(70)}), "");
  EXPECT_EQ(workspace_bytes(p, {0, false, 1, Architecture(70)}), 0u);
}

class Products : public OnEach {};

INSTANTIATE_TEST_SUITE_P(Kernels, Products, testing::ValuesIn(all_architectures()),
                         [](auto const& on) { return std::string(name(on.param)); });

TEST_P(Products, SaysWhatItRunsOn) {
  Architecture const self = GetParam();
  bool const is_sm90 = self == Architecture::sm90;
  EXPECT_STREQ(name(self), is_sm90 ? "sm90" : "sm80");
  EXPECT_TRUE(runs_on(self, 9, 0));
  EXPECT_FALSE(runs_on(self, 7, 5));
  for (auto const& [major, minor] : {std::pair{8, 0}, {8, 9}, {10, 0}, {12, 0}}) {
    EXPECT_EQ(runs_on(self, major, minor), !is_sm90);
  }
}

TEST_P(Products, SaysWhichOperandsItTakes) {
  bool const takes_fp32 = GetParam() == Architecture::sm80;
  EXPECT_TRUE(takes(GetParam(), DataType::bf16) && takes(GetParam(), DataType::fp16));
  EXPECT_EQ(takes(GetParam(), DataType::fp32), takes_fp32);
  EXPECT_FALSE(takes(GetParam(), DataType::fp64));
  EXPECT_EQ(reason_after([](Problem& p) { p.dtype = DataType::fp32; }).empty(), takes_fp32);
  EXPECT_NE(reason_after([](Problem& p) { p.dtype = DataType::fp64; }), "");
}

// Of fp32, 16 bytes are four elements.
TEST_P(Products, AlignsFp32ByItsOwnSize) {
  if (!takes(GetParam(), DataType::fp32)) {
    return;
  }
  Problem p = problem(260, 516, 132);
  p.dtype = DataType::fp32;
  EXPECT_EQ(reason(p, way(0, false)), "");
  p.b.ld = p.d_ld = p.n = 514;
  EXPECT_NE(reason(p, way(0, false)), "");
}

TEST_P(Products, HasTilesOfWholeSlotsAndOneMaskUnitDeep) {
  EXPECT_EQ(tiles(), GetParam() == Architecture::sm90 ? 4 : 3);
  for (int id = 0; id < tiles(); ++id) {
    Tile const t = tile_of(id);
    EXPECT_EQ(t.n % t.slot_n, 0);
    EXPECT_LE(t.n / t.slot_n, kMaxSlots);
    EXPECT_EQ(t.k, kMaskUnit);
    EXPECT_EQ(t.architecture, GetParam());
  }
}

TEST_P(Products, TakesAPlainProblemEitherWay) {
  for (int id = 0; id < tiles(); ++id) {
    EXPECT_EQ(reason(problem(256, 512, 128), way(id, false)), "");
    EXPECT_EQ(reason(problem(256, 512, 128), way(id, true)), "");
  }
}

TEST_P(Products, NamesWhatIsWrong) {
  EXPECT_EQ(reason_after([](Problem&) {}), "");
  EXPECT_NE(reason(problem(256, 512, 128), way(tiles(), false)), "");
  EXPECT_NE(reason(problem(256, 512, 128), way(-1, false)), "");
  EXPECT_NE(reason(problem(0, 512, 128), way(0, false)), "");
  EXPECT_NE(reason(problem(int64_t(1) << 31, 512, 128), way(0, false)), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a.data = kMemory + 8; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a.data = nullptr; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.d = nullptr; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.bias = kMemory + 8; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a.ld = 120; }), "");  // shorter than a row
  EXPECT_NE(reason_after([](Problem& p) { p.b.ld = 513; }), "");  // rows start unaligned
  EXPECT_NE(reason_after([](Problem& p) { p.b.ld = int64_t(1) << 40; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.n = 505; }), "");  // although ld = 512
  EXPECT_NE(reason_after([](Problem& p) { p.a_mask = mask(100, 128); }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a_mask = mask(0, 128); }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a_mask = {nullptr, nullptr, 128, 128}; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.d_mask = {kWords, nullptr, 128, 128}; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.dtype = DataType(9); }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.activation = Activation(9); }), "");
}

TEST_P(Products, TakesAPreActivationForGeluAndSilu) {
  auto const with = [&](Activation activation, void* pre_activation) {
    return reason_after([=](Problem& p) {
      p.activation = activation;
      p.pre_activation = pre_activation;
    });
  };
  EXPECT_EQ(with(Activation::gelu, kMemory + 16), "");
  EXPECT_EQ(with(Activation::silu, kMemory + 16), "");
  EXPECT_NE(with(Activation::none, kMemory + 16), "");
  EXPECT_NE(with(Activation::relu, kMemory + 16), "");
  EXPECT_NE(with(Activation::gelu, kMemory + 8), "");  // not aligned
  EXPECT_NE(with(Activation::gelu, kMemory), "");      // where d is
}

// A weight gradient in fp32, dW = dYᵀ X.
Problem wide(int64_t m, int64_t n, int64_t k) {
  Problem p = problem(m, n, k);
  p.a = {kMemory, m, Order::col_major};
  p.d_is_fp32 = true;
  return p;
}

TEST_P(Products, TakesAWideProductEitherWay) {
  Problem p = wide(256, 512, 4096);
  p.a_mask = p.b_mask = mask(768, 768);
  for (bool accumulates : {false, true}) {
    p.accumulates = accumulates;
    for (int id = 0; id < tiles(); ++id) {
      EXPECT_EQ(reason(p, way(id, false)), "");
      EXPECT_EQ(reason(p, way(id, true)), "");
      EXPECT_EQ(reason(p, way(id, true, 8)).empty(), tile_of(id).n <= own_limits().max_split_n);
    }
  }
}

TEST_P(Products, NamesWhatAWideProductCannotHave) {
  auto const reason_after = [&](auto change) {
    Problem p = wide(256, 512, 128);
    change(p);
    return reason(p, way(0, false));
  };
  EXPECT_EQ(reason_after([](Problem&) {}), "");
  EXPECT_NE(reason_after([](Problem& p) { p.d_mask = mask(128, 128); }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.activation = Activation::relu; }), "");
  EXPECT_NE(reason_after([](Problem& p) {
              p.activation = Activation::gelu;
              p.pre_activation = kMemory + 16;
            }),
            "");
  EXPECT_NE(reason_after([](Problem& p) { p.bias = kMemory; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.a = {kMemory, 128, Order::row_major}; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.b = {kMemory, 128, Order::col_major}; }), "");
  EXPECT_EQ(reason_after([](Problem& p) { p.d_ld = 516; }), "");  // 16 bytes are 4 of its elements
  EXPECT_NE(reason_after([](Problem& p) { p.d_ld = 514; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.d_ld = int64_t(1) << 38; }), "");
  EXPECT_NE(reason_after([](Problem& p) { p.d = kMemory + 8; }), "");
  // In place, the sum would be rounded each time.
  EXPECT_NE(reason_after([](Problem& p) {
              p.accumulates = true;
              p.d_is_fp32 = false;
            }),
            "");
}

TEST_P(Products, RefusesBeforeItTouchesTheGpu) {
  EXPECT_EQ(matmul(problem(256, 513, 128), way(0, false), nullptr, nullptr), cudaErrorInvalidValue);
}

TEST_P(Products, SplitsNarrowTilesOfPlainResults) {
  Problem p = problem(512, 512, 4096);
  for (int id = 0; id < tiles(); ++id) {
    EXPECT_EQ(reason(p, way(id, false, 8)).empty(), tile_of(id).n <= own_limits().max_split_n);
    EXPECT_NE(reason(p, way(id, false, 0)), "");
    EXPECT_NE(reason(p, way(id, false, -1)), "");
    EXPECT_NE(reason(p, way(id, false, own_limits().max_split_k + 1)), "");
  }
  p.activation = Activation::relu;
  EXPECT_NE(reason(p, way(1, false, 2)), "");
  p = problem(512, 512, 4096);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(reason(p, way(1, false, 1)), "");
  EXPECT_NE(reason(p, way(1, false, 2)), "");
  EXPECT_NE(reason(problem(16384, 16384, 4096), way(1, false, 2)), "");  // too many tiles
  EXPECT_NE(reason(problem(INT32_MAX - 263, INT32_MAX - 263, 64), way(1, false, 2)), "");
}

// Along m by n, tiles are 128x256, 128x128, 64x128 and 128x192, of slots of 128, or of 64.
TEST_P(Products, BlocksAreAWholeNumberOfTiles) {
  Problem p = problem(1024, 1024, 1024);
  p.a_mask = mask(128, 128);
  EXPECT_EQ(reason(p, way(0, false)), "");
  EXPECT_NE(reason(p, way(0, true)), "");  // tile.n = 256 would run along blocks of 128 rows
  EXPECT_EQ(reason(p, way(1, true)), "");

  p = problem(1024, 1024, 1024);
  p.b_mask = mask(128, 128);
  EXPECT_NE(reason(p, way(0, false)), "");
  EXPECT_EQ(reason(p, way(0, true)), "");

  p = problem(1024, 1024, 1024);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(reason(p, way(0, false)), "");  // two slots of 128 from anywhere in the line
  EXPECT_EQ(reason(p, way(0, true)), "");
  p.d_mask = mask(64, 128);
  EXPECT_NE(reason(p, way(0, false)), "");
  EXPECT_NE(reason(p, way(0, true)), "");
  EXPECT_EQ(reason(p, way(1, true)), "");  // slots of 64 along m
}

}  // namespace
}  // namespace sparsedrop
