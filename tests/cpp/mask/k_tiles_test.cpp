#include "mask/k_tiles.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sparsedrop {
namespace {

std::vector<int32_t> walk(uint32_t const* a, uint32_t const* b, int32_t k_tiles) {
  KTiles tiles(a, b, k_tiles);
  std::vector<int32_t> found;
  for (int32_t tile = tiles.next(); tile != kNoKTile; tile = tiles.next()) {
    found.push_back(tile);
  }
  EXPECT_EQ(int32_t(found.size()), tiles.count());
  return found;
}

bool bit(std::vector<uint32_t> const& words, int32_t i) { return words[i / 32] >> (i % 32) & 1u; }

TEST(KTiles, NullLinesAreAllLive) {
  EXPECT_EQ(walk(nullptr, nullptr, 3), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(walk(nullptr, nullptr, 0), std::vector<int32_t>{});
  EXPECT_EQ(walk(nullptr, nullptr, 64).size(), 64u);
}

TEST(KTiles, IntersectsBothLines) {
  uint32_t const a[] = {0b1100, 0};
  uint32_t const b[] = {0b0110, 0};
  EXPECT_EQ(walk(a, b, 64), std::vector<int32_t>{2});
  EXPECT_EQ(walk(a, nullptr, 64), (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(walk(nullptr, b, 64), (std::vector<int32_t>{1, 2}));
}

TEST(KTiles, SkipsEmptyWords) {
  uint32_t const a[] = {0, 0, 0x80000001u, 0, 2};
  EXPECT_EQ(walk(a, nullptr, 160), (std::vector<int32_t>{64, 95, 129}));
}

TEST(KTiles, NeverLeavesTheProblem) {
  uint32_t const a[] = {0xffffffffu};
  EXPECT_EQ(walk(a, nullptr, 5), (std::vector<int32_t>{0, 1, 2, 3, 4}));
}

TEST(KTiles, SkippingIsCallingNext) {
  uint32_t const lines[][5] = {{0, 0xffffffffu, 0, 0x80000001u, 3}, {5, 0, 0, 0, 0}, {}};
  for (auto const& line : lines) {
    for (int32_t k_tiles : {0, 31, 32, 64, 130, 160}) {
      std::vector<int32_t> const all = walk(line, nullptr, k_tiles);
      for (int32_t skipped = 0; skipped < 40; ++skipped) {
        KTiles tiles(line, nullptr, k_tiles);
        tiles.skip(skipped);
        for (size_t i = size_t(skipped); i < all.size(); ++i) {
          EXPECT_EQ(tiles.next(), all[i]);
        }
        EXPECT_EQ(tiles.next(), kNoKTile);
      }
    }
  }
}

TEST(KTiles, FindsTheLiveTilesOfRandomLines) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    auto const k_tiles = int32_t(random() % 130);
    std::vector<uint32_t> a(5), b(5);
    for (auto& word : a) word = random() & random();
    for (auto& word : b) word = random();
    std::vector<int32_t> expected;
    for (int32_t i = 0; i < k_tiles; ++i) {
      if (bit(a, i) && bit(b, i)) expected.push_back(i);
    }
    EXPECT_EQ(walk(a.data(), b.data(), k_tiles), expected);
  }
}

}  // namespace
}  // namespace sparsedrop
