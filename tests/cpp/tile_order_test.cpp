#include "schedule/tile_list.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

namespace sparsedrop {
namespace {

struct Order {
  std::vector<int32_t> order, tiles, start;
  int32_t total = 0;

  Order(std::vector<int32_t> order_, std::vector<int32_t> tiles_)
      : order(std::move(order_)), tiles(std::move(tiles_)) {
    for (int32_t line : order) {
      start.push_back(total);
      total += tiles[line];
    }
  }

  int32_t index(int32_t position, int32_t tile, int32_t shift = kMaxGroupShift) const {
    return record_index(order.data(), tiles.data(), start.data(), int32_t(order.size()), shift,
                        position, tile);
  }
};

Order random_order(std::mt19937& random) {
  std::vector<int32_t> order(1 + random() % 40), tiles(order.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (auto& count : tiles) count = int32_t(random() % 9);
  return Order(order, tiles);
}

TEST(GroupShift, FewLinesWhereTheCacheHoldsB) {
  EXPECT_EQ(group_shift(1, 128, 1 << 20), 1);
  EXPECT_EQ(group_shift(2 * kMaxGroups, 128, 1 << 20), 1);
  EXPECT_EQ(group_shift(2 * kMaxGroups + 1, 128, 1 << 20), 2);
  EXPECT_EQ(group_shift(100000, 128, 1 << 20), kMaxGroupShift);
  EXPECT_EQ(group_shift(1, 128, kCachedBytes), 1);
  EXPECT_EQ(group_shift(1, 128, kCachedBytes + 1), kMaxGroupShift);
  EXPECT_EQ(group_shift(1, kWideTile, kCachedBytes), kMaxGroupShift);
}

TEST(OrderBin, MostLiveFirst) {
  EXPECT_EQ(order_bin(64, 64, 1024), 0);
  EXPECT_LT(order_bin(0, 64, 1024), 1024);
  for (int32_t live = 0; live < 64; ++live) {
    EXPECT_GT(order_bin(live, 64, 1024), order_bin(live + 1, 64, 1024));
  }
}

TEST(OrderBin, FitsForAnyCount) {
  int32_t const most = 1 << 25;
  EXPECT_EQ(order_bin(most, most, 1024), 0);
  EXPECT_LT(order_bin(0, most, 1024), 1024);
  EXPECT_GE(order_bin(0, most, 1024), 512);
}

TEST(RecordIndex, LinesOfAGroupWalkInStep) {
  Order const order({2, 0, 1}, {2, 2, 2});
  EXPECT_EQ(order.index(0, 0), 0);
  EXPECT_EQ(order.index(1, 0), 1);
  EXPECT_EQ(order.index(2, 0), 2);
  EXPECT_EQ(order.index(0, 1), 3);
  EXPECT_EQ(order.index(2, 1), 5);
}

TEST(RecordIndex, ShortLinesLeaveNoGaps) {
  Order const order({0, 1, 2}, {1, 3, 0});
  EXPECT_EQ(order.index(0, 0), 0);
  EXPECT_EQ(order.index(1, 0), 1);
  EXPECT_EQ(order.index(1, 1), 2);
  EXPECT_EQ(order.index(1, 2), 3);
}

TEST(FullGrid, PlaceInvertsRecordIndex) {
  for (int32_t lines : {1, 7, 8, 9, 21}) {
    for (int32_t tiles : {1, 2, 5}) {
      for (int32_t shift : {1, 2, 3}) {
        std::vector<int32_t> lines_in_order(static_cast<size_t>(lines));
        std::iota(lines_in_order.begin(), lines_in_order.end(), 0);
        Order const order(lines_in_order, std::vector<int32_t>(size_t(lines), tiles));
        FullGrid const grid(lines, 2 * tiles, 2, 0, 64, shift);
        for (int32_t i = 0; i < order.total; ++i) {
          GroupPlace const place = grid.place({false, i, 0, 2});
          EXPECT_EQ(order.index(place.position, place.tile, shift), i);
        }
      }
    }
  }
}

TEST(Records, GiveOutEverySlotOfAGridOnce) {
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t slots : {1, 2, 3, 7, 32}) {
      for (int32_t ctas : {1, 4, 132}) {
        FullGrid const grid(11, slots, slots_per_tile, 0, 64, kMaxGroupShift);
        Records const records = grid.records(ctas);
        std::vector<int> taken(size_t(grid.lines * slots), 0);
        for (int32_t i = 0; i < records.count(); ++i) {
          Records::Part const part = records.at(i);
          GroupPlace const at = grid.place(part);
          int32_t const first = at.tile * slots_per_tile + part.place;
          TileRecord const tile = grid_tile(grid, at.position, first, part.slots, 0);
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
                         int32_t slots_per_list = 0) {
  return NarrowLines(FullGrid(lines, slots, slots_per_tile, slots_per_list, 64, 1), ctas);
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
          GroupPlace const at = narrow.place(i);
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
          FullGrid const grid(lines, slots, slots_per_tile, 0, 64, 1);
          NarrowLines const narrow(grid, ctas);
          if (narrow.lines == 0) continue;
          FullGrid const others = grid.of_lines(lines - narrow.lines);
          Records const records = others.records(std::max(ctas - narrow.count(), 1));
          EXPECT_LE(narrow.count() + records.count(), ctas);
          EXPECT_EQ(records.kept_whole, records.whole);
        }
      }
    }
  }
}

// Whatever is cut out of a line without dropped slots, its slots share one list of K tiles.
TEST(FullGrid, EveryTileLiesInsideOneBlockOfB) {
  int narrower = 0;
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t tiles_per_list = 0; tiles_per_list < 5; ++tiles_per_list) {
      int32_t const per_list = tiles_per_list * slots_per_tile;
      for (int32_t slots = 1; slots < 50; ++slots) {
        for (int32_t lines : {1, 3, 6, 14, 20, 130}) {
          FullGrid const grid(lines, slots, slots_per_tile, per_list, 64, 1);
          NarrowLines const narrow(grid, 132);
          narrower += narrow.lines > 0 && per_list > 0;
          FullGrid const others = grid.of_lines(lines - narrow.lines);
          Records const records = others.records(std::max(132 - narrow.count(), 1));
          auto const expect_one_list = [&](int32_t first, int32_t count) {
            int32_t const last = std::min(first + count, slots) - 1;
            ASSERT_LE(first, last);
            if (per_list > 0) {
              EXPECT_EQ(first / per_list, last / per_list)
                  << count << " slots from " << first << " on, of " << slots << ", lists of "
                  << per_list;
            }
          };
          for (int32_t i = 0; i < narrow.count(); ++i) {
            expect_one_list(narrow.place(i).tile * (slots_per_tile - 1), slots_per_tile - 1);
          }
          for (int32_t i = 0; i < records.count(); ++i) {
            Records::Part const part = records.at(i);
            expect_one_list(others.place(part).tile * slots_per_tile + part.place, part.slots);
          }
        }
      }
    }
  }
  EXPECT_GT(narrower, 100);
}

TEST(Records, IndexOfIsTheInverseOfAt) {
  Records const records(270, 5, 2, 132);
  for (int32_t i = 0; i < records.first_rest(); ++i) {
    Records::Part const part = records.at(i);
    EXPECT_EQ(records.index_of(part.number, part.place), i);
  }
  for (int32_t i = 0; i < 5; ++i) {
    Records::Part const part = records.at(records.first_rest() + i);
    EXPECT_TRUE(part.is_rest);
    EXPECT_EQ(part.number, i);
  }
}

// In thirds of a whole tile's time, of which a rest takes two; tiles have two slots.
int32_t longest_cta(Records const& records, int32_t ctas) {
  int32_t longest = 0;
  for (int32_t cta = 0; cta < ctas; ++cta) {
    int32_t time = 0;
    for (int32_t turn = 0; records.dealt(turn, cta, ctas) < records.count(); ++turn) {
      Records::Part const part = records.at(records.dealt(turn, cta, ctas));
      time += part.is_rest ? 2 : 1 + part.slots;
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

TEST(Parts, ShareTheKTilesOfATileEvenly) {
  for (int32_t k_tiles : {0, 1, 5, 7, 64, 33554432}) {
    for (int32_t parts = 1; parts <= kMaxParts; ++parts) {
      int32_t before = 0;
      for (int32_t part = 0; part < parts; ++part) {
        TileRecord const record = part_of({3, {1, 2, kNoSlot}, k_tiles, 0}, part, parts);
        EXPECT_EQ(record.m, 3);
        EXPECT_EQ(record.k_before, before);
        EXPECT_LE(std::abs(record.k_tiles - k_tiles / parts), 1);
        before += record.k_tiles;
      }
      EXPECT_EQ(before, k_tiles);
    }
  }
}

TEST(RecordIndex, EveryPlaceIsTakenOnce) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    int32_t const shift = 1 + round % 3;
    Order const order = random_order(random);
    size_t const lines = order.order.size();
    std::vector<int> taken(size_t(order.total), 0);
    for (size_t position = 0; position < lines; ++position) {
      for (int32_t tile = 0; tile < order.tiles[order.order[position]]; ++tile) {
        int32_t const index = order.index(int32_t(position), tile, shift);
        ASSERT_GE(index, 0);
        ASSERT_LT(index, order.total);
        ++taken[index];
      }
    }
    EXPECT_TRUE(std::all_of(taken.begin(), taken.end(), [](int n) { return n == 1; }));
  }
}

}  // namespace
}  // namespace sparsedrop
