#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "schedule/records.hpp"

namespace sparsedrop {
namespace {

TEST(Records, IndexOfIsTheInverseOfAt) {
  Records const records(270, 5, 2, 132);
  for (int32_t i = 0; i < records.first_rest(); ++i) {
    Piece const piece = records.at(i);
    EXPECT_EQ(records.index_of(piece.number, piece.first_slot), i);
  }
  for (int32_t i = 0; i < 5; ++i) {
    Piece const piece = records.at(records.first_rest() + i);
    EXPECT_TRUE(piece.is_rest);
    EXPECT_EQ(piece.number, i);
  }
}

// In thirds of a whole tile's time, of which a rest takes two; tiles have two slots.
int32_t longest_cta(Records const& records, int32_t ctas) {
  int32_t longest = 0;
  for (int32_t cta = 0; cta < ctas; ++cta) {
    int32_t time = 0;
    for (int32_t turn = 0; records.dealt(turn, cta, ctas) < records.count(); ++turn) {
      Piece const piece = records.at(records.dealt(turn, cta, ctas));
      time += piece.is_rest ? 2 : 1 + piece.slots;
    }
    longest = std::max(longest, time);
  }
  return longest;
}

TEST(Records, LastWaveTakesTheLeastTime) {
  EXPECT_EQ(Records(264, 0, 2, 132).kept_whole, 264);
  EXPECT_EQ(Records(268, 0, 2, 132).kept_whole, 264);  // slot by slot
  EXPECT_EQ(Records(263, 0, 2, 132).kept_whole, 263);  // nearly full: left whole
  EXPECT_EQ(Records(268, 0, 3, 132).kept_whole, 268);  // single slots of three would take longer
  EXPECT_EQ(longest_cta(Records(268, 0, 2, 132), 132), 8);
  EXPECT_EQ(longest_cta(Records(263, 1, 2, 132), 132), 6);
  // Two rests each beside whole tiles, and not one more wave of rests.
  EXPECT_EQ(Records(248, 20, 2, 132).without_rests, 116);
  EXPECT_EQ(longest_cta(Records(248, 20, 2, 132), 132), 7);
  EXPECT_EQ(longest_cta(Records(0, 140, 2, 132), 132), 4);
}

TEST(Records, EveryOneIsDealtOnce) {
  for (int32_t whole : {0, 3, 7, 12, 13, 20, 100}) {
    for (int32_t rests : {0, 1, 4, 9, 30}) {
      for (int32_t slots_per_tile : {2, 3}) {
        Records const records(whole, rests, slots_per_tile, 7);
        std::vector<int> taken(size_t(records.count()), 0);
        for (int32_t cta = 0; cta < 7; ++cta) {
          for (int32_t turn = 0; records.dealt(turn, cta, 7) < records.count(); ++turn) {
            ++taken[records.dealt(turn, cta, 7)];
          }
        }
        EXPECT_TRUE(std::all_of(taken.begin(), taken.end(), [](int n) { return n == 1; }));
      }
    }
  }
  EXPECT_EQ(Records(100, 0, 3, 7).dealt(1, 0, 7), 13);  // the second wave runs backwards
}

}  // namespace
}  // namespace sparsedrop
