#include "mask/split.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <utility>

namespace sparsedrop {
namespace {

TEST(KTilesBefore, PartsCoverAllOnceAndEvenly) {
  for (int32_t k_tiles : {0, 1, 3, 8, 61, 65535}) {
    for (int32_t parts = 1; parts <= kMaxParts; ++parts) {
      EXPECT_EQ(k_tiles_before(k_tiles, 0, parts), 0);
      EXPECT_EQ(k_tiles_before(k_tiles, parts, parts), k_tiles);
      for (int32_t part = 0; part < parts; ++part) {
        int32_t const own =
            k_tiles_before(k_tiles, part + 1, parts) - k_tiles_before(k_tiles, part, parts);
        EXPECT_GE(own, k_tiles / parts);
        EXPECT_LE(own, k_tiles / parts + 1);
      }
    }
  }
}

TEST(SplitPlan, GivesOutEveryPartOnce) {
  std::mt19937 random(19);
  for (int round = 0; round < 500; ++round) {
    auto const wholes = int32_t(random() % 300);
    auto const singles = int32_t(random() % 60);
    auto const k_tiles = int32_t(random() % 200);
    SplitPlan const plan = SplitPlan::of(wholes, singles, k_tiles, k_tiles / 2, 132);
    ASSERT_GE(plan.parts, 1);
    EXPECT_TRUE(plan.parts == 1 || plan.tiles() * (plan.parts - 1) <= kMaxMeetings);
    std::map<std::pair<bool, int32_t>, std::set<int32_t>> parts;
    std::set<int32_t> split_tiles;
    for (int32_t i = 0; i < plan.count(); ++i) {
      SplitPlan::Part const part = plan.at(i);
      EXPECT_TRUE(parts[std::make_pair(part.is_single, part.number)].insert(part.part).second);
      if (part.index >= 0) split_tiles.insert(part.index);
    }
    EXPECT_EQ(parts.size(), size_t(wholes + singles));
    EXPECT_EQ(split_tiles.size(), size_t(plan.tiles()));
    for (auto const& [tile, of_tile] : parts) {
      bool const is_kept = !tile.first && tile.second < plan.kept;
      EXPECT_EQ(of_tile.size(), size_t(is_kept ? 1 : plan.parts));
    }
  }
}

TEST(SplitPlan, SplitsWhatLeavesCtasIdle) {
  auto parts = [](int32_t wholes, int32_t singles, int32_t k_tiles) {
    return SplitPlan::of(wholes, singles, k_tiles, k_tiles, 132).parts;
  };
  EXPECT_GT(parts(72, 0, 99), 1);    // of one wave little more than a half
  EXPECT_GT(parts(128, 12, 64), 1);  // one wave, and then 12 singles
  EXPECT_EQ(parts(132, 0, 64), 1);   // one full wave
  EXPECT_EQ(parts(264, 0, 64), 1);
  EXPECT_EQ(parts(40, 0, 4), 1);  // too short
  EXPECT_EQ(parts(0, 0, 64), 1);  // nothing to do
}

TEST(SplitPlan, EvensOutUnequalTiles) {
  EXPECT_EQ(SplitPlan::of(128, 0, 128, 128, 132).parts, 1);
  EXPECT_EQ(SplitPlan::of(128, 0, 160, 128, 132).parts, 2);
}

}  // namespace
}  // namespace sparsedrop
