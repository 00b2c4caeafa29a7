// Equal shares of a product's work: each CTA takes a run of K tiles that may begin and end inside an
// output tile. Pure functions, for the host's tests too.

#pragma once

#include <cstdint>

#include "mask/tile_order.hpp"

namespace sparsedrop {

// Work is counted in eighths of what one K tile of a whole output tile takes. A slot of its own
// takes more than half, since it shares its K tile of A with nothing.
struct WorkUnits {
  int32_t k_tile;
  int32_t tile;  // filling the stages, and the epilogue
};
constexpr WorkUnits kWholeWork{8, 16};
constexpr WorkUnits kSingleWork{5, 10};
// What it costs a CTA to leave a partial sum and to pick up another one.
constexpr int32_t kSplitWork = 32;
constexpr int32_t kLeastShare = 64;
constexpr int32_t kLeastPiece = 3;  // K tiles: no tile is split closer to its ends

constexpr int32_t kMaxGroups = 32;

// The lines of tiles by position in the order: wholes group by group, then singles.
struct LineWork {
  int32_t lines;
  uint16_t const* live;       // K tiles
  uint16_t const* whole;      // tiles
  uint32_t const* left_over;  // a bit for each line that has a single
  // Sums over the groups before, kMaxGroups + 1 of each; those of singles go on from the wholes'.
  int64_t const* whole_start;
  int64_t const* single_start;

  SPARSEDROP_HOST_DEVICE int64_t total() const { return single_start[kMaxGroups]; }

  SPARSEDROP_HOST_DEVICE int32_t last_in(int32_t group) const {
    int32_t const last = (group + 1) * kLinesPerGroup;
    return last < lines ? last : lines;
  }

  SPARSEDROP_HOST_DEVICE bool has_single(int32_t position) const {
    return (left_over[position / 32] >> (position % 32)) & 1u;
  }

  SPARSEDROP_HOST_DEVICE int32_t of_tile(bool is_single, int32_t position) const {
    WorkUnits const units = is_single ? kSingleWork : kWholeWork;
    return units.tile + units.k_tile * live[position];
  }

  // Of the first `rounds` whole tiles of every line of a group.
  SPARSEDROP_HOST_DEVICE int64_t of_rounds(int32_t group, int32_t rounds) const {
    int64_t sum = 0;
    for (int32_t i = group * kLinesPerGroup; i < last_in(group); ++i) {
      sum += int64_t(whole[i] < rounds ? whole[i] : rounds) * of_tile(false, i);
    }
    return sum;
  }

  // Of the whole tiles before the one at `place`.
  SPARSEDROP_HOST_DEVICE int64_t before(GroupPlace const& place) const {
    int32_t const group = place.position / kLinesPerGroup;
    int64_t sum = whole_start[group] + of_rounds(group, place.tile);
    for (int32_t i = group * kLinesPerGroup; i < place.position; ++i) {
      sum += whole[i] > place.tile ? of_tile(false, i) : 0;
    }
    return sum;
  }
};

// A point in the work: K tile `k` of an output tile.
struct Cut {
  bool is_single;
  int32_t group;  // of a whole tile
  int32_t position;
  int32_t tile;  // of its line
  int32_t k;
  int64_t start;  // work before the output tile

  SPARSEDROP_HOST_DEVICE bool in_same_tile(Cut const& other) const {
    return is_single == other.is_single && position == other.position && tile == other.tile;
  }
};

// The first K tile of the output tile behind the one that `cut` is in, or the end.
SPARSEDROP_HOST_DEVICE void to_next_tile(LineWork const& work, Cut& cut) {
  cut.start += work.of_tile(cut.is_single, cut.position);
  cut.k = 0;
  ++cut.position;
  while (!cut.is_single) {
    for (; cut.position < work.last_in(cut.group); ++cut.position) {
      if (work.whole[cut.position] > cut.tile) {
        return;
      }
    }
    ++cut.tile;
    cut.position = cut.group * kLinesPerGroup;
    if (work.whole_start[cut.group] + work.of_rounds(cut.group, cut.tile) ==
        work.whole_start[cut.group + 1]) {
      ++cut.group;
      cut.tile = 0;
      cut.position = cut.group * kLinesPerGroup;
      cut.is_single = cut.position >= work.lines;
      cut.position = cut.is_single ? 0 : cut.position;
    }
  }
  while (cut.position < work.lines && !work.has_single(cut.position)) {
    ++cut.position;
  }
}

// The last index whose value is at most `x`.
SPARSEDROP_HOST_DEVICE int32_t last_at_most(int64_t const* sorted, int32_t count, int64_t x) {
  int32_t low = 0;
  for (int32_t step = kMaxGroups; step > 0; step /= 2) {
    if (low + step < count && sorted[low + step] <= x) {
      low += step;
    }
  }
  return low;
}

// K tile of a tile that starts at `start` where point `x` of the work falls; 0: before the tile, its
// count: behind it.
SPARSEDROP_HOST_DEVICE int32_t k_tile_at(int64_t x, int64_t start, bool is_single, int32_t live) {
  WorkUnits const units = is_single ? kSingleWork : kWholeWork;
  auto const k = int32_t((x - start - units.tile) / units.k_tile);
  return k < kLeastPiece ? 0 : k > live - kLeastPiece ? live : k;
}

// Where `x` units of work are done.
SPARSEDROP_HOST_DEVICE Cut cut_at(LineWork const& work, int64_t x) {
  if (x >= work.total()) {
    return {true, 0, work.lines, 0, 0, work.total()};
  }
  bool const is_single = x >= work.whole_start[kMaxGroups];
  int64_t const* const starts = is_single ? work.single_start : work.whole_start;
  Cut cut{is_single, last_at_most(starts, kMaxGroups + 1, x), 0, 0, 0, 0};
  cut.start = starts[cut.group];
  if (!is_single) {
    int64_t const within = x - cut.start;
    int32_t high = 0;
    for (int32_t i = cut.group * kLinesPerGroup; i < work.last_in(cut.group); ++i) {
      high = work.whole[i] > high ? work.whole[i] : high;
    }
    while (cut.tile < high) {
      int32_t const middle = (cut.tile + high + 1) / 2;
      if (work.of_rounds(cut.group, middle) <= within) {
        cut.tile = middle;
      } else {
        high = middle - 1;
      }
    }
    cut.start += work.of_rounds(cut.group, cut.tile);
  }
  cut.position = cut.group * kLinesPerGroup;
  while (true) {
    bool const is_there =
        is_single ? work.has_single(cut.position) : work.whole[cut.position] > cut.tile;
    int32_t const units = is_there ? work.of_tile(is_single, cut.position) : 0;
    if (x < cut.start + units) {
      break;
    }
    cut.start += units;
    ++cut.position;
  }
  int32_t const live = work.live[cut.position];
  cut.k = k_tile_at(x, cut.start, is_single, live);
  if (cut.k > 0 && cut.k == live) {
    to_next_tile(work, cut);
  }
  return cut;
}

// Neighbouring K tiles of one output tile.
struct Run {
  Cut tile;         // and its first K tile
  int32_t k_tiles;  // how many
  int32_t others;   // runs of this tile in the shares behind; their sums belong to this one
};

// The work from `first` on, in `count` shares.
struct Shares {
  int64_t first;
  int32_t count;

  SPARSEDROP_HOST_DEVICE int64_t start(LineWork const& work, int32_t share) const {
    return first + (work.total() - first) * share / count;
  }

  // Calls `take` with the runs of a share. The first may be the end of a tile, whose sum is then
  // left for the share before; the last may be the beginning of one.
  template <class Take>
  SPARSEDROP_HOST_DEVICE void deal(LineWork const& work, int32_t share, Take take) const {
    Cut cut = cut_at(work, start(work, share));
    Cut const end = cut_at(work, start(work, share + 1));
    while (!(cut.in_same_tile(end) && cut.k == end.k)) {
      bool const is_last = cut.in_same_tile(end);
      int32_t const k_end = is_last ? end.k : work.live[cut.position];
      bool const has_others = is_last && cut.k == 0;
      take(Run{cut, k_end - cut.k, has_others ? count_behind(work, share, end) : 0});
      if (is_last) {
        break;
      }
      to_next_tile(work, cut);
    }
  }

 private:
  // Shares behind `share` that start within the tile of its end.
  SPARSEDROP_HOST_DEVICE int32_t count_behind(LineWork const& work, int32_t share,
                                              Cut const& end) const {
    int32_t const live = work.live[end.position];
    int64_t const tile_end = end.start + work.of_tile(end.is_single, end.position);
    int32_t others = 1;
    for (int32_t other = share + 2; other < count; ++other, ++others) {
      int64_t const x = start(work, other);
      if (x >= tile_end || k_tile_at(x, end.start, end.is_single, live) == live) {
        break;
      }
    }
    return others;
  }
};

// How a product's tiles are given out: `dealt` whole tiles in turn, then the rest in shares.
// Without shares, all are dealt.
struct Plan {
  int32_t dealt;
  int32_t shares;
};

// Shares cost a little and even out what a partly filled last wave and unequal lines leave idle.
// With `in_step`, operands are too large for L2: CTAs should walk through the tiles together for as
// long as they can, and only the last one or two waves are shares.
SPARSEDROP_HOST_DEVICE Plan plan_of(LineWork const& work, int32_t wholes, int32_t singles,
                                    int32_t ctas, bool in_step) {
  int32_t const tiles = wholes + singles;
  if (tiles == 0) {
    return {0, 0};
  }
  int64_t const total = work.total();
  int64_t const waves = ceil_div(tiles, ctas);
  int64_t const longest = work.of_tile(wholes == 0, 0);
  int64_t const even = waves * total / tiles;
  int64_t const dealt_time = waves == 1 || longest > even ? longest : even;
  int64_t const most = total / kLeastShare;
  auto const shares = int32_t(most < 1 ? 1 : most < ctas ? most : ctas);
  if (total / shares + kSplitWork >= dealt_time) {
    return {tiles, 0};
  }
  int32_t const full_waves = wholes / ctas - 1;
  return {in_step && full_waves > 0 ? full_waves * ctas : 0, shares};
}

}  // namespace sparsedrop
