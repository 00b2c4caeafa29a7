#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "schedule/tile_record.hpp"

namespace sparsedrop {
namespace {

TEST(GroupShift, FewLinesWhereTheCacheHoldsB) {
  EXPECT_EQ(group_shift(1, 128, 1 << 20), 1);
  EXPECT_EQ(group_shift(2 * kMaxGroups, 128, 1 << 20), 1);
  EXPECT_EQ(group_shift(2 * kMaxGroups + 1, 128, 1 << 20), 2);
  EXPECT_EQ(group_shift(100000, 128, 1 << 20), kMaxGroupShift);
  EXPECT_EQ(group_shift(1, 128, kCachedBytes), 1);
  EXPECT_EQ(group_shift(1, 128, kCachedBytes + 1), kMaxGroupShift);
  EXPECT_EQ(group_shift(1, kWideTile, kCachedBytes), kMaxGroupShift);
}

TEST(Grid, RecordsGiveOutEverySlotOnce) {
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t slots : {1, 2, 3, 7, 32}) {
      for (int32_t ctas : {1, 4, 132}) {
        Grid const grid(11, slots, slots_per_tile, 0, 64, kMaxGroupShift);
        Records const records = grid.records(ctas);
        std::vector<int> taken(size_t(grid.lines * slots), 0);
        for (int32_t i = 0; i < records.count(); ++i) {
          Piece const piece = records.at(i);
          Place const at = grid.place(piece);
          int32_t const first = at.tile * slots_per_tile + piece.first_slot;
          TileRecord const tile = neighbouring_slots(grid, at.position, first, piece.slots, 0);
          for (int32_t slot : tile.slot) {
            if (slot != kNoSlot) {
              ++taken[at.position * slots + slot];
            }
          }
        }
        EXPECT_TRUE(std::all_of(taken.begin(), taken.end(), [](int n) { return n == 1; }));
      }
    }
  }
}

NarrowLines narrow_lines(int32_t lines, int32_t slots, int32_t slots_per_tile, int32_t ctas,
                         int32_t slots_per_k_list = 0) {
  return NarrowLines(Grid(lines, slots, slots_per_tile, slots_per_k_list, 64, 1), ctas);
}

TEST(NarrowLines, CoverTheirLinesInWhatIsIdle) {
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t slots : {1, 2, 7, 48}) {
      for (int32_t lines : {1, 3, 6, 20}) {
        NarrowLines const narrow = narrow_lines(lines, slots, slots_per_tile, 132);
        EXPECT_LE(narrow.lines, lines);
        int32_t const wide_tiles = int32_t(ceil_div(slots, slots_per_tile));
        EXPECT_LE(narrow.count() + (lines - narrow.lines) * wide_tiles,
                  std::max(132, lines * wide_tiles));
        std::vector<int> taken(size_t(narrow.lines * slots), 0);
        for (int32_t i = 0; i < narrow.count(); ++i) {
          Place const at = narrow.place(i);
          for (int32_t slot = at.tile * (slots_per_tile - 1);
               slot < std::min(slots, (at.tile + 1) * (slots_per_tile - 1)); ++slot) {
            ++taken[at.position * slots + slot];
          }
        }
        EXPECT_TRUE(std::all_of(taken.begin(), taken.end(), [](int n) { return n == 1; }));
      }
    }
  }
  EXPECT_EQ(narrow_lines(6, 48, 3, 132).lines, 4);   // 36 CTAs idle, 8 more for each line
  EXPECT_EQ(narrow_lines(8, 48, 3, 132).lines, 0);   // none: 128 tiles, and 4 are not enough
  EXPECT_EQ(narrow_lines(15, 24, 3, 132).lines, 0);  // 3 would fit, less than a quarter
  EXPECT_EQ(narrow_lines(14, 24, 3, 132).lines, 5);
  EXPECT_EQ(narrow_lines(20, 48, 3, 132).lines, 0);  // several waves
  EXPECT_EQ(narrow_lines(2, 3, 3, 132).lines, 2);
  EXPECT_EQ(narrow_lines(2, 1, 3, 132).lines, 0);      // one slot is one tile
  EXPECT_EQ(narrow_lines(6, 48, 3, 132, 3).lines, 0);  // a tile of two slots would need two lists
  EXPECT_EQ(narrow_lines(6, 48, 3, 132, 6).lines, 4);
}

TEST(NarrowLines, FitIntoOneWaveWithTheOthers) {
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t ctas : {1, 7, 132}) {
      for (int32_t slots = 1; slots < 50; ++slots) {
        for (int32_t lines = 1; lines < 20; ++lines) {
          Grid const grid(lines, slots, slots_per_tile, 0, 64, 1);
          NarrowLines const narrow(grid, ctas);
          if (narrow.lines == 0) continue;
          Grid const others = grid.of_lines(lines - narrow.lines);
          Records const records = others.records(std::max(ctas - narrow.count(), 1));
          EXPECT_LE(narrow.count() + records.count(), ctas);
          EXPECT_EQ(records.kept_whole, records.whole);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
