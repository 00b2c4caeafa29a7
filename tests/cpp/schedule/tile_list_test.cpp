#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "schedule/tile_list.hpp"

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
                        {position, tile});
  }
};

Order random_order(std::mt19937& random) {
  std::vector<int32_t> order(1 + random() % 40), tiles(order.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (auto& count : tiles) count = int32_t(random() % 9);
  return Order(order, tiles);
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

TEST(Grid, PlaceInvertsRecordIndex) {
  for (int32_t lines : {1, 7, 8, 9, 21}) {
    for (int32_t tiles : {1, 2, 5}) {
      for (int32_t shift : {1, 2, 3}) {
        std::vector<int32_t> lines_in_order(static_cast<size_t>(lines));
        std::iota(lines_in_order.begin(), lines_in_order.end(), 0);
        Order const order(lines_in_order, std::vector<int32_t>(size_t(lines), tiles));
        Grid const grid(lines, 2 * tiles, 2, 0, 64, shift);
        for (int32_t i = 0; i < order.total; ++i) {
          Place const place = grid.place({false, i, 0, 2});
          EXPECT_EQ(order.index(place.position, place.tile, shift), i);
        }
      }
    }
  }
}

TEST(Gathering, TakesLiveSlotsInTheirOrder) {
  for (int32_t per_tile : {2, 3}) {
    for (int32_t live = 0; live < 20; ++live) {
      Gathering const tiles(live, per_tile);
      EXPECT_EQ(tiles.whole * per_tile + tiles.rest, live);
      EXPECT_LT(tiles.rest, per_tile);
      for (int32_t rank = 0; rank < live; ++rank) {
        Gathering::At const at = tiles.at(rank);
        EXPECT_EQ(at.tile * per_tile + at.slot, rank);
        EXPECT_LT(at.slot, at.tile == tiles.whole ? tiles.rest : per_tile);
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
