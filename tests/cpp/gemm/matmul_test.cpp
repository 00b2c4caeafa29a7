#include <gtest/gtest.h>

#include <string>

#include "gemm/product.hpp"
#include "schedule/schedule.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

// Never read: these tests launch nothing.
alignas(16) char kMemory[32];
uint32_t const kWords[1] = {0};

constexpr Architecture kSm90 = Architecture::sm90;
int const kTiles = tile_count(kSm90);
Tile sm90_tile(int id) { return tile(kSm90, id); }

Mask mask(int32_t block_rows, int32_t block_cols) {
  return {kWords, kWords, block_rows, block_cols};
}

Problem problem(int64_t m, int64_t n, int64_t k) {
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

std::string reason(Problem const& p, Choice choice) {
  char const* text = refusal(p, choice);
  return text == nullptr ? "" : text;
}

TEST(Architectures, SayWhatTheyRunOn) {
  ASSERT_EQ(architecture_count(), 1);
  EXPECT_EQ(architecture(0), kSm90);
  EXPECT_STREQ(name(kSm90), "sm90");
  EXPECT_TRUE(runs_on(kSm90, 9, 0));
  EXPECT_FALSE(runs_on(kSm90, 8, 9));
  EXPECT_FALSE(runs_on(kSm90, 10, 0));
  Problem const p = problem(256, 512, 128);
  EXPECT_NE(reason(p, {0, false, 1, Architecture(80)}), "");
  EXPECT_EQ(workspace_bytes(p, {0, false, 1, Architecture(80)}), 0u);
}

TEST(Tiles, AreWholeSlotsAndOneMaskUnitDeep) {
  ASSERT_EQ(kTiles, 4);
  for (int id = 0; id < kTiles; ++id) {
    Tile const t = sm90_tile(id);
    EXPECT_EQ(t.n % t.slot_n, 0);
    EXPECT_LE(t.n / t.slot_n, kMaxSlots);
    EXPECT_EQ(t.k, kMaskUnit);
    EXPECT_EQ(t.architecture, kSm90);
  }
}

TEST(Refusal, TakesAPlainProblemEitherWay) {
  for (int id = 0; id < kTiles; ++id) {
    EXPECT_EQ(reason(problem(256, 512, 128), {id, false}), "");
    EXPECT_EQ(reason(problem(256, 512, 128), {id, true}), "");
  }
}

template <class Change>
std::string reason_after(Change change) {
  Problem p = problem(256, 512, 128);
  change(p);
  return reason(p, {0, false});
}

TEST(Refusal, NamesWhatIsWrong) {
  EXPECT_EQ(reason_after([](Problem&) {}), "");
  EXPECT_NE(reason(problem(256, 512, 128), {kTiles, false}), "");
  EXPECT_NE(reason(problem(256, 512, 128), {-1, false}), "");
  EXPECT_NE(reason(problem(0, 512, 128), {0, false}), "");
  EXPECT_NE(reason(problem(int64_t(1) << 31, 512, 128), {0, false}), "");
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

TEST(Refusal, TakesAPreActivationForGeluAndSilu) {
  auto const with = [](Activation activation, void* pre_activation) {
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

TEST(Refusal, TakesAWideProductEitherWay) {
  Problem p = wide(256, 512, 4096);
  p.a_mask = p.b_mask = mask(768, 768);
  for (bool accumulates : {false, true}) {
    p.accumulates = accumulates;
    for (int id = 0; id < kTiles; ++id) {
      EXPECT_EQ(reason(p, {id, false}), "");
      EXPECT_EQ(reason(p, {id, true}), "");
      EXPECT_EQ(reason(p, {id, true, 8}).empty(), sm90_tile(id).n <= limits(kSm90).max_split_n);
    }
  }
}

TEST(Refusal, NamesWhatAWideProductCannotHave) {
  auto const reason_after = [](auto change) {
    Problem p = wide(256, 512, 128);
    change(p);
    return reason(p, {0, false});
  };
  EXPECT_EQ(reason_after([](Problem&) {}), "");
  EXPECT_NE(reason_after([](Problem& p) { p.dtype = DataType::fp32; }), "");
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

TEST(Matmul, RefusesBeforeItTouchesTheGpu) {
  EXPECT_EQ(matmul(problem(256, 513, 128), {0, false}, nullptr, nullptr), cudaErrorInvalidValue);
}

TEST(Refusal, SplitsNarrowTilesOfPlainResults) {
  Problem p = problem(512, 512, 4096);
  for (int id = 0; id < kTiles; ++id) {
    EXPECT_EQ(reason(p, {id, false, 8}).empty(), sm90_tile(id).n <= limits(kSm90).max_split_n);
    EXPECT_NE(reason(p, {id, false, 0}), "");
    EXPECT_NE(reason(p, {id, false, -1}), "");
    EXPECT_NE(reason(p, {id, false, limits(kSm90).max_split_k + 1}), "");
  }
  p.activation = Activation::relu;
  EXPECT_NE(reason(p, {1, false, 2}), "");
  p = problem(512, 512, 4096);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(reason(p, {1, false, 1}), "");
  EXPECT_NE(reason(p, {1, false, 2}), "");
  EXPECT_NE(reason(problem(16384, 16384, 4096), {1, false, 2}), "");  // too many tiles
  EXPECT_NE(reason(problem(INT32_MAX - 263, INT32_MAX - 263, 64), {1, false, 2}), "");
}

// Along m by n, tiles are 128x256, 128x128, 64x128 and 128x192, of slots of 128, or of 64.
TEST(Refusal, BlocksAreAWholeNumberOfTiles) {
  Problem p = problem(1024, 1024, 1024);
  p.a_mask = mask(128, 128);
  EXPECT_EQ(reason(p, {0, false}), "");
  EXPECT_NE(reason(p, {0, true}), "");  // tile.n = 256 would run along blocks of 128 rows
  EXPECT_EQ(reason(p, {1, true}), "");

  p = problem(1024, 1024, 1024);
  p.b_mask = mask(128, 128);
  EXPECT_NE(reason(p, {0, false}), "");
  EXPECT_EQ(reason(p, {0, true}), "");

  p = problem(1024, 1024, 1024);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(reason(p, {0, false}), "");  // two slots of 128 from anywhere in the line
  EXPECT_EQ(reason(p, {0, true}), "");
  p.d_mask = mask(64, 128);
  EXPECT_NE(reason(p, {0, false}), "");
  EXPECT_NE(reason(p, {0, true}), "");
  EXPECT_EQ(reason(p, {1, true}), "");  // slots of 64 along m
}

// Masks whose words are not known yet count by their blocks.
TEST(Workspace, IsEmptyForWhatIsRefused) {
  Problem p = problem(1024, 1024, 1024);
  p.b_mask = p.d_mask = {nullptr, nullptr, 128, 128};
  EXPECT_EQ(workspace_bytes(p, {0, false}), 0u);
  EXPECT_GT(workspace_bytes(p, {1, false}), 0u);
  p.b_mask = {nullptr, nullptr, 64, 0};
  EXPECT_EQ(workspace_bytes(p, {1, false}), 0u);
  p.a_mask = {nullptr, nullptr, 128, 100};
  p.b_mask = {nullptr, nullptr, 100, 128};
  EXPECT_EQ(workspace_bytes(p, {1, false}), 0u);
  EXPECT_EQ(workspace_bytes(problem(128 * 257, int64_t(1) << 41, 64), {1, false}), 0u);
}

TEST(Orient, SwapTransposesTheProblem) {
  Problem p = problem(256, 512, 128);
  p.b = {kMemory, 128, Order::col_major};
  p.a_mask = mask(128, 64);
  p.pre_activation = kMemory + 16;
  Product const straight = orient(p, false);
  EXPECT_EQ(straight.m, 256);
  EXPECT_TRUE(straight.a.k_major && straight.b.k_major && straight.n_major);
  EXPECT_EQ(straight.a_lines.block.value(), 128);
  EXPECT_EQ(straight.b_lines.words, nullptr);
  Product const swapped = orient(p, true);
  EXPECT_EQ(swapped.m, 512);
  EXPECT_EQ(swapped.n, 256);
  EXPECT_FALSE(swapped.n_major);
  EXPECT_EQ(swapped.pre_activation, kMemory + 16);
  EXPECT_EQ(swapped.a_lines.words, nullptr);
  EXPECT_EQ(swapped.b_lines.block.value(), 128);
  p.d_is_fp32 = p.accumulates = true;
  EXPECT_TRUE(orient(p, true).d_is_fp32 && orient(p, true).accumulates);
  EXPECT_FALSE(straight.d_is_fp32 || straight.accumulates);
}

TEST(Workspace, IsEmptyWithoutAList) {
  Problem p = problem(4096, 4096, 4096);
  p.a_mask = mask(128, 128);
  EXPECT_EQ(workspace_bytes(p, {0, false}), 0u);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(workspace_bytes(p, {0, false}), 0u);
  EXPECT_GT(workspace_bytes(p, {1, true}), 0u);  // a's mask plays that of b
  EXPECT_GT(workspace_bytes(problem(128 * 257, 4096, 4096), {0, false}), 0u);
}

TEST(Workspace, HoldsTheSumsOfAllSplitsButOne) {
  Problem const p = problem(300, 520, 4096);
  for (bool swap : {false, true}) {
    size_t const tiles = 3 * 5;
    size_t const sums = tiles * 128 * 128 * sizeof(float);
    EXPECT_EQ(workspace_bytes(p, {1, swap, 1}), 0u);
    EXPECT_EQ(workspace_bytes(p, {1, swap, 4}), 3 * (sums + tiles * 2 * sizeof(uint64_t)));
    EXPECT_EQ(workspace_bytes(p, {0, swap, 4}), 0u);  // is refused
    EXPECT_EQ(workspace_bytes(p, {1, swap, 1000}), 0u);
  }
}

TEST(Workspace, HoldsTheLongestList) {
  // Blocks of 768 are a whole number of every tile.
  for (int id = 0; id < kTiles; ++id) {
    Tile const t = sm90_tile(id);
    for (int64_t n : {1, 64, 300, 4096}) {
      // Every slot alone in its tile is the worst that masks on B and D together can do.
      int64_t const slots = (n + t.slot_n - 1) / t.slot_n;
      int64_t const lines = (1000 + t.m - 1) / t.m;
      EXPECT_EQ(max_records(1000, n, t), lines * slots);
      Problem p = problem(1000, n, 64);
      p.b_mask = p.d_mask = mask(768, 768);
      size_t const bytes = workspace_bytes(p, {id, false});
      EXPECT_GT(bytes, sizeof(TileRecord) * size_t(lines * slots));
      Problem transposed = problem(n, 1000, 64);
      transposed.a_mask = transposed.d_mask = mask(768, 768);
      EXPECT_EQ(workspace_bytes(transposed, {id, true}), bytes);
    }
  }
}

}  // namespace
}  // namespace sparsedrop
