#include "mask/shares.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

namespace sparsedrop {
namespace {

// Lines in their order, with the sums that a CTA makes of them.
struct OrderedLines {
  std::vector<uint16_t> live, whole;
  std::vector<uint32_t> left_over = std::vector<uint32_t>(8, 0);
  std::vector<int32_t> whole_count{0};
  std::vector<int64_t> whole_start{0}, single_start;
  int32_t singles = 0;

  OrderedLines(std::vector<uint16_t> live_, std::vector<uint16_t> whole_,
               std::vector<bool> const& has_single)
      : live(std::move(live_)), whole(std::move(whole_)) {
    for (size_t i = 0; i < has_single.size(); ++i) {
      left_over[i / 32] |= uint32_t(has_single[i]) << (i % 32);
      singles += has_single[i];
    }
    LineWork const counts = work();
    for (int32_t g = 0; g < kMaxGroups; ++g) {
      int32_t count = 0;
      for (int32_t i = g * kLinesPerGroup; i < counts.last_in(g); ++i) count += whole[size_t(i)];
      whole_count.push_back(whole_count.back() + count);
      whole_start.push_back(whole_start.back() + counts.of_rounds(g, 1 << 16));
    }
    single_start.push_back(whole_start.back());
    for (int32_t g = 0; g < kMaxGroups; ++g) {
      int64_t sum = single_start.back();
      for (int32_t i = g * kLinesPerGroup; i < counts.last_in(g); ++i) {
        sum += counts.has_single(i) ? counts.of_tile(true, i) : 0;
      }
      single_start.push_back(sum);
    }
  }

  LineWork work() const {
    return {int32_t(live.size()), live.data(),        whole.data(),
            left_over.data(),     whole_start.data(), single_start.data()};
  }
};

OrderedLines random_lines(std::mt19937& random) {
  size_t const lines = 1 + random() % 60;
  auto const most_live = 1 + random() % 70;
  auto const most_tiles = 1 + random() % 9;
  std::vector<uint16_t> live(lines), whole(lines);
  std::vector<bool> has_single(lines);
  for (size_t i = 0; i < lines; ++i) {
    live[i] = uint16_t(random() % most_live);
    whole[i] = uint16_t(random() % most_tiles);
    has_single[i] = random() % 3 == 0;
  }
  std::sort(live.rbegin(), live.rend());
  return OrderedLines(live, whole, has_single);
}

struct Part {
  int32_t share, k, k_tiles, others;
};

using Tile = std::tuple<bool, int32_t, int32_t>;

std::map<Tile, std::vector<Part>> deal_all(LineWork const& work, Shares const& shares) {
  std::map<Tile, std::vector<Part>> parts;
  for (int32_t share = 0; share < shares.count; ++share) {
    shares.deal(work, share, [&](Run const& run) {
      Cut const& at = run.tile;
      parts[{at.is_single, at.position, at.tile}].push_back({share, at.k, run.k_tiles, run.others});
    });
  }
  return parts;
}

// Every K tile of every tile from `first` on belongs to one share, and who begins a tile knows how
// many others go on with it.
void expect_complete(OrderedLines const& lines, Shares const& shares) {
  LineWork const work = lines.work();
  auto const parts = deal_all(work, shares);
  size_t tiles = 0;
  for (int32_t position = 0; position < work.lines; ++position) {
    int32_t const wholes = work.whole[position];
    for (int32_t tile = 0; tile < wholes + (work.has_single(position) ? 1 : 0); ++tile) {
      bool const is_single = tile == wholes;
      int64_t const before =
          is_single ? work.total() : work.before({position, tile});  // singles always come last
      if (before < shares.first) continue;
      ++tiles;
      auto const found = parts.find({is_single, position, is_single ? 0 : tile});
      ASSERT_NE(found, parts.end());
      auto const& of_tile = found->second;
      int32_t k = 0;
      for (size_t i = 0; i < of_tile.size(); ++i) {
        EXPECT_EQ(of_tile[i].k, k);
        EXPECT_EQ(of_tile[i].share, of_tile[0].share + int32_t(i));
        EXPECT_EQ(of_tile[i].others, i == 0 ? int32_t(of_tile.size()) - 1 : 0);
        EXPECT_TRUE(of_tile[i].k_tiles > 0 || of_tile.size() == 1);
        k += of_tile[i].k_tiles;
      }
      EXPECT_EQ(k, work.live[position]);
    }
  }
  EXPECT_EQ(parts.size(), tiles);
}

TEST(Shares, CoverEveryTileOnce) {
  std::mt19937 random(17);
  for (int round = 0; round < 400; ++round) {
    OrderedLines const lines = random_lines(random);
    LineWork const work = lines.work();
    if (work.total() == 0) continue;
    int64_t const most = std::max<int64_t>(1, work.total() / kLeastShare);
    expect_complete(lines, {0, int32_t(1 + int64_t(random()) % most)});
    int32_t const wholes = lines.whole_count.back();
    if (wholes > 0) {
      auto const dealt = int32_t(random()) % wholes;
      int64_t const first = work.before(
          place_in_groups(dealt < 0 ? -dealt : dealt, work.lines, work.whole,
                          lines.whole_count.data()));
      int64_t const rest = std::max<int64_t>(1, (work.total() - first) / kLeastShare);
      expect_complete(lines, {first, int32_t(std::min<int64_t>(rest, 132))});
    }
  }
}

TEST(Shares, AreEven) {
  std::vector<uint16_t> const live(16, 32), whole(16, 4);
  OrderedLines const lines(live, whole, std::vector<bool>(16, false));
  Shares const shares{0, 132};
  std::vector<int32_t> k_tiles(132, 0);
  for (auto const& [tile, parts] : deal_all(lines.work(), shares)) {
    for (Part const& part : parts) k_tiles[size_t(part.share)] += part.k_tiles;
  }
  // 64 tiles of 32 K tiles: 15.5 for each
  EXPECT_LE(*std::max_element(k_tiles.begin(), k_tiles.end()), 19);
  EXPECT_GE(*std::min_element(k_tiles.begin(), k_tiles.end()), 12);
}

TEST(PlanOf, SharesWhereAWaveIsBadlyFilled) {
  auto plan = [](uint16_t lines, uint16_t tiles, uint16_t k_tiles, bool in_step) {
    OrderedLines const all(std::vector<uint16_t>(lines, k_tiles),
                           std::vector<uint16_t>(lines, tiles), std::vector<bool>(lines, false));
    return plan_of(all.work(), lines * tiles, 0, 132, in_step);
  };
  EXPECT_EQ(plan(16, 4, 32, false).shares, 132);  // half of a wave
  EXPECT_EQ(plan(66, 2, 32, false).shares, 0);    // one full wave
  EXPECT_EQ(plan(33, 8, 64, false).shares, 0);    // two
  EXPECT_EQ(plan(34, 4, 64, false).shares, 132);  // a little more than one
  EXPECT_EQ(plan(34, 4, 64, false).dealt, 0);
  EXPECT_EQ(plan(68, 10, 64, true).dealt, 4 * 132);  // of 680 tiles, and the rest in shares
  EXPECT_EQ(plan(2, 2, 2, false).shares, 0);          // too little work to split
}

TEST(PlanOf, NothingToDo) {
  OrderedLines const none({3, 3}, {0, 0}, {false, false});
  Plan const plan = plan_of(none.work(), 0, 0, 132, false);
  EXPECT_EQ(plan.dealt, 0);
  EXPECT_EQ(plan.shares, 0);
}

}  // namespace
}  // namespace sparsedrop
