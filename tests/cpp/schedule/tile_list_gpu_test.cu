// On a GPU: the list of a product with masks on B and D has every live slot once, in tiles that
// share one K list, with the right count of K tiles.

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "device_memory.hpp"
#include "mask/k_tiles.hpp"
#include "schedule/tile_list.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

struct Shape {
  int32_t lines;
  int32_t slots;  // of 64 columns
  int32_t slots_per_tile;
  int32_t tiles_per_k_list;
};

constexpr int32_t kTileM = 128, kSlotN = 64, kKTiles = 40, kCtas = 7;

void list_and_check(Shape const& shape, uint32_t seed) {
  SCOPED_TRACE(std::to_string(shape.lines) + " lines of " + std::to_string(shape.slots) +
               " slots, " + std::to_string(shape.slots_per_tile) + " a tile, " +
               std::to_string(shape.tiles_per_k_list) + " tiles a K list");
  int32_t const per_k_list = shape.slots_per_tile * shape.tiles_per_k_list;
  Grid const grid(shape.lines, shape.slots, shape.slots_per_tile, per_k_list, kKTiles, 1);
  std::mt19937 engine(seed);
  auto const draw = [&](int64_t count) {
    std::vector<uint32_t> words;
    for (int64_t i = 0; i < count; ++i) {
      words.push_back(uint32_t(engine()));
    }
    return words;
  };
  int64_t const k_words = ceil_div(kKTiles, 32), n_words = ceil_div(shape.slots, 32);
  int64_t const k_lists = ceil_div(shape.slots, per_k_list);
  std::vector<uint32_t> const a = draw(shape.lines * k_words), b = draw(k_lists * k_words),
                              d = draw(shape.lines * n_words);
  TileListRequest const request{grid,
                                {to_device(a), k_words, kTileM},
                                {to_device(b), k_words, per_k_list * kSlotN},
                                {to_device(d), n_words, kTileM},
                                kTileM,
                                kSlotN,
                                kCtas};
  auto const slots = int64_t(shape.lines) * shape.slots;
  Carver measure(nullptr);
  lay_out_list(grid, slots, measure);
  void* workspace = nullptr;
  ASSERT_EQ(cudaMalloc(&workspace, measure.used()), cudaSuccess);
  Carver carver(workspace);
  TileList const list = lay_out_list(grid, slots, carver);
  ASSERT_EQ(make_tile_list(request, list, false, nullptr), cudaSuccess);

  TileListHeader const header = to_host(list.header, 1)[0];
  ASSERT_LE(header.count, slots);
  EXPECT_EQ(header.next, kCtas);
  std::vector<int> taken(size_t(slots), 0);
  for (TileRecord const& tile : to_host(list.records, size_t(header.count))) {
    ASSERT_GE(tile.m, 0);
    ASSERT_LT(tile.m, shape.lines);
    int32_t const k_list = tile.slot[0] / per_k_list;
    KTiles const k_tiles(a.data() + tile.m * k_words, b.data() + k_list * k_words, kKTiles);
    EXPECT_EQ(tile.k_tiles, k_tiles.count());
    for (int32_t slot : tile.slot) {
      if (slot != kNoSlot) {
        ASSERT_EQ(slot / per_k_list, k_list);
        ++taken[size_t(int64_t(tile.m) * shape.slots + slot)];
      }
    }
  }
  SlotBits const bits = SlotBits::of(kSlotN, kMaskUnit);
  for (int32_t line = 0; line < shape.lines; ++line) {
    for (int32_t slot = 0; slot < shape.slots; ++slot) {
      int const live = bits.is_live(d.data() + line * n_words, slot) ? 1 : 0;
      ASSERT_EQ(taken[size_t(int64_t(line) * shape.slots + slot)], live);
    }
  }
}

TEST(TileList, GathersLiveSlotsThatShareAKList) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "no GPU";
  }
  uint32_t seed = 0;
  for (int32_t slots_per_tile : {2, 3}) {
    for (int32_t tiles_per_k_list : {1, 2, 5}) {
      for (int32_t lines : {1, 9, 40, 1100}) {
        for (int32_t slots : {1, 7, 48}) {
          list_and_check({lines, slots, slots_per_tile, tiles_per_k_list}, ++seed);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
