// Which CTA computes which tile, and when: asks the kernels' own schedule for a product whose lines
// of tiles have so many live K tiles each.
//
//     tiles CTAS SLOTS LIVE_OF_LINE_0 LIVE_OF_LINE_1 ...
//
// prints, for each record: the CTA, its turn, the line, the first slot, how many slots, K tiles.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "schedule/grid.hpp"
#include "schedule/records.hpp"

int main(int argc, char** argv) {
  using namespace sparsedrop;
  if (argc < 4) {
    std::fprintf(stderr, "usage: tiles CTAS SLOTS LIVE...\n");
    return 2;
  }
  int32_t const ctas = std::atoi(argv[1]);
  int32_t const slots = std::atoi(argv[2]);
  std::vector<int32_t> live;
  std::transform(argv + 3, argv + argc, std::back_inserter(live), std::atoi);

  // The order in which OwnOrder::sort_lines() takes lines: most live K tiles first, ties by index.
  std::vector<int32_t> order(live.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return live[a] > live[b]; });

  constexpr int32_t kSlotsPerTile = 2;
  auto const lines = int32_t(live.size());
  int32_t const most = *std::max_element(live.begin(), live.end());
  Grid const grid(lines, slots, kSlotsPerTile, 0, most, group_shift(lines, 128, 0));
  Records const records = grid.records(ctas);
  for (int32_t cta = 0; cta < ctas; ++cta) {
    for (int32_t turn = 0; records.dealt(turn, cta, ctas) < records.count(); ++turn) {
      Piece const piece = records.at(records.dealt(turn, cta, ctas));
      Place const at = grid.place(piece);
      int32_t const line = order[at.position];
      int32_t const first = at.tile * kSlotsPerTile + piece.first_slot;
      std::printf("%d %d %d %d %d %d\n", cta, turn, line, first,
                  std::min(piece.slots, slots - first), live[line]);
    }
  }
  return 0;
}
