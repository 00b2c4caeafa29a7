#include "mask/shares.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace sparsedrop {
namespace {

struct Part {
  int32_t share, first_k, k_tiles, others;
};

using Tile = std::pair<int32_t, int32_t>;  // line, tile

struct Product {
  std::vector<LineWork> lines;
  std::vector<int32_t> starts{0};
  int32_t tiles = 0;
  int32_t longest = 0;

  explicit Product(std::vector<LineWork> lines_) : lines(std::move(lines_)) {
    for (LineWork const& line : lines) {
      starts.push_back(starts.back() + line.total());
      tiles += line.tiles();
      if (line.tiles() > 0) longest = std::max(longest, line.of_tile(0));
    }
  }

  Shares shares(int32_t ctas) const { return Shares::of(starts.back(), tiles, longest, ctas); }

  Cut cut(Shares const& shares, int32_t share) const {
    int32_t const x = shares.start(share);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (starts[i] <= x && x < starts[i + 1]) {
        return shares.cut_in_line(x, int32_t(i), lines[i], starts[i]);
      }
    }
    return {int32_t(lines.size()), 0, 0, starts.back()};
  }

  std::map<Tile, std::vector<Part>> deal(Shares const& shares) const {
    std::map<Tile, std::vector<Part>> parts;
    for (int32_t share = 0; share < shares.count; ++share) {
      deal_share(
          shares, share, int32_t(lines.size()), [&](int32_t i) { return lines[size_t(i)]; },
          cut(shares, share), cut(shares, share + 1), [&](Run const& run) {
            parts[{run.line, run.tile}].push_back({share, run.first_k, run.k_tiles, run.others});
          });
    }
    return parts;
  }
};

Product random_product(std::mt19937& random) {
  std::vector<LineWork> lines(1 + random() % 60);
  auto const most_live = 1 + random() % 70;
  auto const most_tiles = 1 + random() % 9;
  for (LineWork& line : lines) {
    line = {int32_t(random() % most_live), int32_t(random() % most_tiles),
            int32_t(random() % 3 == 0)};
  }
  return Product(lines);
}

// Every K tile of every tile belongs to one share, and who begins a tile knows how many others go
// on with it.
void expect_complete(Product const& product, Shares const& shares) {
  auto const parts = product.deal(shares);
  EXPECT_EQ(parts.size(), size_t(product.tiles));
  for (auto const& [tile, of_tile] : parts) {
    int32_t k = 0;
    for (size_t i = 0; i < of_tile.size(); ++i) {
      EXPECT_EQ(of_tile[i].first_k, k);
      EXPECT_EQ(of_tile[i].share, of_tile[0].share + int32_t(i));
      EXPECT_EQ(of_tile[i].others, i == 0 ? int32_t(of_tile.size()) - 1 : 0);
      EXPECT_TRUE(of_tile[i].k_tiles > 0 || of_tile.size() == 1);
      k += of_tile[i].k_tiles;
    }
    EXPECT_EQ(k, product.lines[size_t(tile.first)].live);
    EXPECT_TRUE(shares.splits || of_tile.size() == 1);
  }
}

TEST(Shares, CoverEveryTileOnce) {
  std::mt19937 random(17);
  for (int round = 0; round < 1000; ++round) {
    Product const product = random_product(random);
    auto const ctas = int32_t(1 + random() % 140);
    expect_complete(product, product.shares(ctas));
    int32_t const most = std::max(1, product.starts.back() / kLeastShare);
    expect_complete(product, {product.starts.back(), std::min(ctas, most), true});
    expect_complete(product, {product.starts.back(), ctas, false});
  }
}

TEST(Shares, AreEven) {
  Product const product(std::vector<LineWork>(16, {32, 4, 0}));
  Shares const shares = product.shares(132);
  EXPECT_TRUE(shares.splits);
  std::vector<int32_t> k_tiles(132, 0);
  for (auto const& [tile, parts] : product.deal(shares)) {
    for (Part const& part : parts) k_tiles[size_t(part.share)] += part.k_tiles;
  }
  // 64 tiles of 32 K tiles: 15.5 for each
  EXPECT_LE(*std::max_element(k_tiles.begin(), k_tiles.end()), 19);
  EXPECT_GE(*std::min_element(k_tiles.begin(), k_tiles.end()), 12);
}

TEST(Shares, SplitWhereAWaveIsBadlyFilled) {
  auto splits = [](size_t lines, LineWork line) {
    return Product(std::vector<LineWork>(lines, line)).shares(132).splits;
  };
  EXPECT_TRUE(splits(16, {32, 4, 0}));   // half of a wave
  EXPECT_FALSE(splits(66, {32, 2, 0}));  // one full wave
  EXPECT_FALSE(splits(33, {64, 8, 0}));  // two
  EXPECT_TRUE(splits(34, {64, 4, 0}));   // a little more than one
  EXPECT_FALSE(splits(2, {2, 2, 0}));    // too little work
  EXPECT_FALSE(splits(3, {9, 0, 0}));    // nothing to do
}

TEST(Shares, WholeTilesAreOneForEachCtaWhereTheyFit) {
  Product const product(std::vector<LineWork>(64, {32, 2, 0}));
  Shares const shares = product.shares(132);
  ASSERT_FALSE(shares.splits);
  std::vector<int> tiles(132, 0);
  for (auto const& [tile, parts] : product.deal(shares)) ++tiles[size_t(parts[0].share)];
  EXPECT_EQ(*std::max_element(tiles.begin(), tiles.end()), 1);
}

}  // namespace
}  // namespace sparsedrop
