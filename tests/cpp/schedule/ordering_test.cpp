#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gemm/architecture.hpp"
#include "schedule/ordering.hpp"

namespace sparsedrop {
namespace {

constexpr int32_t kSms = 132;

// What the CTAs of one launch compute, from a schedule alone: D has no mask, and there is no list.
struct Launch {
  ScheduleRequest request;
  Schedule schedule;
  Ordering by;

  explicit Launch(ScheduleRequest const& wanted)
      : request(wanted), schedule(make(wanted)), by(Ordering::of(schedule)) {}

  // Launches nothing, since no list is needed.
  static Schedule make(ScheduleRequest const& request) {
    alignas(16) static char workspace[16];
    Schedule schedule;
    EXPECT_TRUE(Ordering::suits(request));
    EXPECT_EQ(make_schedule(request, {kSms, 2, true, workspace, nullptr}, &schedule), cudaSuccess);
    return schedule;
  }

  // All records' slots, in the order of CTAs and turns.
  std::vector<Span> spans() const {
    std::vector<Span> all;
    for (int32_t cta = 0; cta < schedule.ctas; ++cta) {
      if (by.one_wave) {
        all.push_back(by.span(request.split_k > 1 ? cta % schedule.sums.tiles : cta));
        continue;
      }
      for (int32_t turn = 0; by.records.dealt(turn, cta, schedule.ctas) < by.records.count();
           ++turn) {
        all.push_back(by.span(by.records.dealt(turn, cta, schedule.ctas)));
      }
    }
    all.erase(std::remove_if(all.begin(), all.end(), [](Span const& s) { return s.slots == 0; }),
              all.end());
    return all;
  }
};

struct Seen {
  int narrow = 0;
  int single_slots = 0;
  int several_waves = 0;
};

void expect_one_list_a_tile(ScheduleRequest const& request, Seen* seen) {
  Launch const launch(request);
  Grid const& grid = launch.by.grid;
  SCOPED_TRACE(std::to_string(request.m) + "x" + std::to_string(request.n) + ", tile " +
               std::to_string(request.tile.m) + "x" + std::to_string(request.tile.n) +
               ", blocks of B " + std::to_string(request.b.exists() ? request.b.block.value() : 0) +
               ", split into " + std::to_string(request.split_k));
  std::vector<int> taken(size_t(grid.lines * grid.slots), 0);
  for (Span const& span : launch.spans()) {
    TileRecord const tile = launch.by.tile_of(span, span.position);
    int64_t const first_column = int64_t(tile.slot[0]) * request.tile.slot_n;
    for (int32_t slot : tile.slot) {
      if (slot == kNoSlot) {
        continue;
      }
      ++taken[size_t(tile.m * grid.slots + slot)];
      int64_t const column = int64_t(slot) * request.tile.slot_n;
      if (request.b.exists()) {
        int64_t const block = request.b.block.value();
        ASSERT_EQ(column / block, first_column / block);
        ASSERT_LE(column % block + request.tile.slot_n, block);
      }
    }
  }
  ASSERT_TRUE(
      std::all_of(taken.begin(), taken.end(), [&](int times) { return times == request.split_k; }));
  seen->narrow += launch.by.narrow.lines > 0 && request.b.exists();
  seen->single_slots += launch.by.records.kept_whole < launch.by.records.whole;
  seen->several_waves += !launch.by.one_wave;
}

// Those that the kernels have.
constexpr KernelTile kTiles[] = {{{128, 256, 64, 128, Architecture::sm90}, false},
                                 {{128, 128, 64, 64, Architecture::sm90}, false},
                                 {{128, 128, 64, 64, Architecture::sm80}, true},
                                 {{64, 128, 64, 64, Architecture::sm90}, true},
                                 {{128, 192, 64, 64, Architecture::sm90}, false}};
constexpr int32_t kMaxSplitN = 128;

// A tile of any width that is run lies inside one block of B, and every slot is computed once:
// whole tiles, rests, narrower ones, single slots, splits along k.
TEST(Ordering, EveryTileHasOneList) {
  Seen seen;
  MaskLines const a{nullptr, 1, 128};
  for (auto const& [tile, has_parallel_slots] : kTiles) {
    for (int32_t tiles_per_block = 0; tiles_per_block < 4; ++tiles_per_block) {
      MaskLines const b =
          tiles_per_block > 0 ? MaskLines{nullptr, 1, tiles_per_block * tile.n} : MaskLines{};
      for (int64_t m : {64, 500, 1116, 1840, 4100}) {
        for (int64_t n : {8, 328, 1116, 1856, 2304, 5000}) {
          for (int32_t split_k : {1, 3}) {
            if (split_k > 1 && tile.n > kMaxSplitN) {
              continue;
            }
            expect_one_list_a_tile({m, n, 1096, 2, a, b, {}, tile, has_parallel_slots, split_k},
                                   &seen);
          }
        }
      }
    }
  }
  EXPECT_GT(seen.narrow, 10);
  EXPECT_GT(seen.single_slots, 10);
  EXPECT_GT(seen.several_waves, 10);
}

// With a mask on D, slots are gathered from anywhere in a line: by CTAs only where B has no mask,
// else list by list, in a launch of its own.
TEST(Ordering, CtasDoNotGatherWhereListsDiffer) {
  MaskLines const lines{nullptr, 1, 128};
  Tile const tile = kTiles[1].tile;
  EXPECT_TRUE(Ordering::suits({1024, 1024, 1024, 2, lines, {}, lines, tile, false, 1}));
  EXPECT_TRUE(Ordering::suits({1024, 1024, 1024, 2, lines, lines, {}, tile, false, 1}));
  EXPECT_FALSE(Ordering::suits({1024, 1024, 1024, 2, {}, lines, lines, tile, false, 1}));
}

TEST(Ordering, WithAMaskOnDAnOnlyTileHasLiveSlotsOnly) {
  // Slots of 64 in blocks of 64: three of four are live.
  uint32_t const words[] = {0b1101u};
  Tile const tile = kTiles[1].tile;
  ScheduleRequest const request{128, 256, 64, 2, {}, {}, {words, 1, 128}, tile, false, 1};
  Schedule const schedule{request, 4, {}, {}};
  Ordering const by = Ordering::of(schedule);
  ASSERT_TRUE(by.one_wave && by.known_by_index);
  std::vector<int32_t> slots;
  for (int32_t cta = 0; cta < 4; ++cta) {
    TileRecord const only = by.only_tile(by.span(cta));
    for (int32_t slot : only.slot) {
      if (only.k_tiles != kNoMoreTiles && slot != kNoSlot) {
        slots.push_back(slot);
      }
    }
  }
  EXPECT_EQ(slots, (std::vector<int32_t>{0, 2, 3}));
}

}  // namespace
}  // namespace sparsedrop
