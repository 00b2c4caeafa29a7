#include <gtest/gtest.h>

#include <cstdlib>

#include "schedule/tile_record.hpp"

namespace sparsedrop {
namespace {

TEST(SplitK, SharesTheKTilesOfATileEvenly) {
  for (int32_t k_tiles : {0, 1, 5, 7, 64, 33554432}) {
    for (int32_t split_k = 1; split_k <= 8; ++split_k) {
      int32_t before = 0;
      for (int32_t split = 0; split < split_k; ++split) {
        TileRecord const record = split_of({3, {1, 2, kNoSlot}, k_tiles, 0}, split, split_k);
        EXPECT_EQ(record.m, 3);
        EXPECT_EQ(record.k_before, before);
        EXPECT_LE(std::abs(record.k_tiles - k_tiles / split_k), 1);
        before += record.k_tiles;
      }
      EXPECT_EQ(before, k_tiles);
    }
  }
}

}  // namespace
}  // namespace sparsedrop
