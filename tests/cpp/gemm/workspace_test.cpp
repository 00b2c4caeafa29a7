// What a product needs of memory, and how it is turned.

#include <gtest/gtest.h>

#include "gemm/on_each.hpp"
#include "gemm/product.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop {
namespace {

class Workspace : public OnEach {};

INSTANTIATE_TEST_SUITE_P(Kernels, Workspace, testing::ValuesIn(all_architectures()),
                         [](auto const& on) { return std::string(name(on.param)); });

// Masks whose words are not known yet count by their blocks.
TEST_P(Workspace, IsEmptyForWhatIsRefused) {
  Problem p = problem(1024, 1024, 1024);
  p.b_mask = p.d_mask = {nullptr, nullptr, 128, 128};
  EXPECT_EQ(workspace_bytes(p, way(0, false)), 0u);
  EXPECT_GT(workspace_bytes(p, way(1, false)), 0u);
  p.b_mask = {nullptr, nullptr, 64, 0};
  EXPECT_EQ(workspace_bytes(p, way(1, false)), 0u);
  p.a_mask = {nullptr, nullptr, 128, 100};
  p.b_mask = {nullptr, nullptr, 100, 128};
  EXPECT_EQ(workspace_bytes(p, way(1, false)), 0u);
  EXPECT_EQ(workspace_bytes(problem(128 * 257, int64_t(1) << 41, 64), way(1, false)), 0u);
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

TEST_P(Workspace, IsEmptyWithoutAList) {
  Problem p = problem(4096, 4096, 4096);
  p.a_mask = mask(128, 128);
  EXPECT_EQ(workspace_bytes(p, way(0, false)), 0u);
  p.d_mask = mask(128, 128);
  EXPECT_EQ(workspace_bytes(p, way(0, false)), 0u);
  EXPECT_GT(workspace_bytes(p, way(1, true)), 0u);  // a's mask plays that of b
  EXPECT_GT(workspace_bytes(problem(128 * 257, 4096, 4096), way(0, false)), 0u);
}

TEST_P(Workspace, HoldsTheSumsOfAllSplitsButOne) {
  Problem const p = problem(300, 520, 4096);
  for (bool swap : {false, true}) {
    size_t const tiles = 3 * 5;
    size_t const sums = tiles * 128 * 128 * sizeof(float);
    // One for each that leaves sums: a warp group, or a CTA.
    size_t const flags = tiles * (GetParam() == Architecture::sm90 ? 2 : 1) * sizeof(uint64_t);
    size_t const whole_vectors = (3 * flags + 15) / 16 * 16;
    EXPECT_EQ(workspace_bytes(p, way(1, swap, 1)), 0u);
    EXPECT_EQ(workspace_bytes(p, way(1, swap, 4)), 3 * sums + whole_vectors);
    EXPECT_EQ(workspace_bytes(p, way(0, swap, 4)), 0u);  // is refused
    EXPECT_EQ(workspace_bytes(p, way(1, swap, 1000)), 0u);
  }
}

TEST_P(Workspace, HoldsTheLongestList) {
  // Blocks of 768 are a whole number of every tile.
  for (int id = 0; id < tiles(); ++id) {
    Tile const t = tile_of(id);
    for (int64_t n : {1, 64, 300, 4096}) {
      // Every slot alone in its tile is the worst that masks on B and D together can do.
      int64_t const slots = (n + t.slot_n - 1) / t.slot_n;
      int64_t const lines = (1000 + t.m - 1) / t.m;
      EXPECT_EQ(max_records(1000, n, t), lines * slots);
      Problem p = problem(1000, n, 64);
      p.b_mask = p.d_mask = mask(768, 768);
      size_t const bytes = workspace_bytes(p, way(id, false));
      EXPECT_GT(bytes, sizeof(TileRecord) * size_t(lines * slots));
      Problem transposed = problem(n, 1000, 64);
      transposed.a_mask = transposed.d_mask = mask(768, 768);
      EXPECT_EQ(workspace_bytes(transposed, way(id, true)), bytes);
    }
  }
}

}  // namespace
}  // namespace sparsedrop
