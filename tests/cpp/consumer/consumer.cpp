// Lists the tiles of the library; needs no GPU.

#include <sparsedrop/sparsedrop.h>

#include <cstdio>

int main() {
  for (int id = 0; id < sparsedrop::tile_count(); ++id) {
    sparsedrop::Tile const t = sparsedrop::tile(id);
    std::printf("tile %d: %dx%dx%d, slots of %d\n", id, t.m, t.n, t.k, t.slot_n);
  }
  sparsedrop::Problem problem;
  problem.m = 128;
  char const* reason = sparsedrop::refusal(problem, sparsedrop::Choice{0, false});
  std::printf("an empty problem: %s\n", reason);
  return sparsedrop::tile_count() > 0 && reason != nullptr ? 0 : 1;
}
