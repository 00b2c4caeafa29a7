// Live units and their places, against a list of them.

#include "elementwise/unit_map.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace sparsedrop {
namespace {

// Of 40 units.
LiveUnits const kAll[] = {{40, 1, 0, 40, 0}, {24, 1, 8, 24, 0}, {24, 1, 32, 8, 0},
                          {1, 1, 39, 1, 0},  {20, 2, 1, 20, 0}, {14, 3, 0, 14, 0},
                          {5, 8, 7, 5, 0},   {0, 50, 45, 0, 0}};

TEST(UnitMap, FindsUnitsAndTheirPlaces) {
  for (LiveUnits const& units : kAll) {
    UnitMap const map(units);
    std::vector<int32_t> places(40, -1);
    for (int32_t i = 0; i < map.count(); ++i) {
      int32_t const unit = map.unit(i);
      ASSERT_GE(unit, 0);
      ASSERT_LT(unit, 40);
      ASSERT_EQ(places[size_t(unit)], -1);
      places[size_t(unit)] = i;
    }
    for (int32_t unit = 0; unit < 40; ++unit) {
      EXPECT_EQ(map.place(unit), places[size_t(unit)]);
    }
  }
}

TEST(UnitMap, KnowsWhetherNeighboursAreOne) {
  EXPECT_TRUE(are_whole({24, 1, 8, 24, 0}, 8));
  EXPECT_TRUE(are_whole({24, 1, 32, 8, 0}, 8));
  EXPECT_FALSE(are_whole({24, 1, 32, 8, 0}, 16));
  EXPECT_FALSE(are_whole({20, 2, 0, 20, 0}, 4));
}

TEST(UnitMap, RefusesWhatIsOutOfReach) {
  EXPECT_TRUE(are_legal({24, 1, 32, 8, 0}));
  EXPECT_FALSE(are_legal({24, 0, 32, 8, 0}));
  EXPECT_FALSE(are_legal({24, 1, 32, 25, 0}));
  EXPECT_FALSE(are_legal({24, 1, -1, 8, 0}));
  EXPECT_FALSE(are_legal({24, int64_t(1) << 31, 0, 8, 0}));
}

}  // namespace
}  // namespace sparsedrop
