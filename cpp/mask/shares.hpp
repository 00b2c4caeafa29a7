// Equal shares of a product's work: each CTA takes a run of K tiles that may begin and end inside an
// output tile. Pure functions, for the host's tests too.

#pragma once

#include <cstdint>

#include "mask/bits.hpp"

namespace sparsedrop {

// Units of work
struct WorkUnits {
  int32_t k_tile;
  int32_t tile;  // filling the stages, and the epilogue
};

// What it costs a CTA to leave a partial sum and to pick up another one.
constexpr int32_t kSplitWork = 100;
constexpr int32_t kLeastShare = 64;
constexpr int32_t kLeastSplit = 32;       // K tiles of a problem that is worth splitting
constexpr int32_t kMostSplit = 1 << 15;  // and that keeps sums of work below 2^31
constexpr int32_t kLeastPiece = 3;  // K tiles: no tile is split closer to its ends

// The output tiles of one line: whole ones, and perhaps a slot without a partner behind them.
struct LineWork {
  int32_t live;  // K tiles
  int32_t wholes;
  int32_t singles;  // 0 or 1

  SPARSEDROP_HOST_DEVICE int32_t tiles() const { return wholes + singles; }

  // Eighths of what one K tile of a whole output tile takes. A slot of its own takes more than half,
  // since it shares its K tile of A with nothing.
  SPARSEDROP_HOST_DEVICE WorkUnits units(int32_t tile) const {
    return tile < wholes ? WorkUnits{8, 16} : WorkUnits{5, 10};
  }

  SPARSEDROP_HOST_DEVICE int32_t of_tile(int32_t tile) const {
    return units(tile).tile + units(tile).k_tile * live;
  }

  SPARSEDROP_HOST_DEVICE int32_t total() const {
    return wholes * of_tile(0) + singles * of_tile(wholes);
  }
};

// A point in the work: K tile `k` of an output tile.
struct Cut {
  int32_t line;
  int32_t tile;  // of the line; its count of tiles: the line is done
  int32_t k;     // live ones before it
  int32_t start;  // work before the output tile

  SPARSEDROP_HOST_DEVICE bool in_same_tile(Cut const& other) const {
    return line == other.line && tile == other.tile;
  }
};

// How all of a product's work is shared out.
struct Shares {
  int32_t total;  // work
  int32_t count;
  bool splits;  // tiles between shares; otherwise a tile belongs to the share of its middle

  SPARSEDROP_HOST_DEVICE int32_t start(int32_t share) const {
    return total / count * share + total % count * share / count;
  }

  // Splitting costs a little and evens out what a partly filled last wave and unequal tiles leave
  // idle.
  SPARSEDROP_HOST_DEVICE static Shares of(int32_t total, int32_t tiles, int32_t longest,
                                          int32_t ctas) {
    int32_t const most = total / kLeastShare;
    int32_t const count = most < 1 ? 1 : most < ctas ? most : ctas;
    int32_t const waves = (tiles + ctas - 1) / ctas;
    int32_t const even = tiles == 0 ? 0 : waves * (total / tiles);
    int32_t const whole_time = longest > even ? longest : even;
    return total / count + kSplitWork < whole_time ? Shares{total, count, true}
                                                   : Shares{total, ctas, false};
  }

  // Where point `x` of the work falls in the tile of `work` units that starts at `start`: before its
  // first K tile, behind its last (the count of live ones), or between.
  SPARSEDROP_HOST_DEVICE int32_t k_tile_at(int32_t x, int32_t tile_start, LineWork const& line,
                                           int32_t tile) const {
    int32_t const within = x - tile_start;
    if (!splits) {
      return 2 * within < line.of_tile(tile) ? 0 : line.live;
    }
    int32_t const k = (within - line.units(tile).tile) / line.units(tile).k_tile;
    return k < kLeastPiece ? 0 : k > line.live - kLeastPiece ? line.live : k;
  }

  // The cut at `x`, which falls in the line whose work starts at `line_start`.
  SPARSEDROP_HOST_DEVICE Cut cut_in_line(int32_t x, int32_t index, LineWork const& line,
                                         int32_t line_start) const {
    int32_t const nth = (x - line_start) / line.of_tile(0);
    int32_t const tile = nth < line.wholes ? nth : line.wholes;
    int32_t const tile_start = line_start + tile * line.of_tile(0);
    int32_t const k = k_tile_at(x, tile_start, line, tile);
    bool const is_behind = 2 * (x - tile_start) >= line.of_tile(tile) && k == line.live;
    return is_behind ? Cut{index, tile + 1, 0, tile_start + line.of_tile(tile)}
                     : Cut{index, tile, k, tile_start};
  }

  // Shares behind the one that ends at `end` that start within the same tile, itself included.
  SPARSEDROP_HOST_DEVICE int32_t count_behind(int32_t share, Cut const& end,
                                              LineWork const& line) const {
    int32_t others = 1;
    for (int32_t other = share + 2; other < count; ++other, ++others) {
      int32_t const x = start(other);
      if (x >= end.start + line.of_tile(end.tile) ||
          k_tile_at(x, end.start, line, end.tile) == line.live) {
        break;
      }
    }
    return others;
  }
};

// Neighbouring K tiles of one output tile.
struct Run {
  int32_t line;
  int32_t tile;
  int32_t first_k;
  int32_t k_tiles;
  int32_t others;  // runs of this tile in the shares behind; their sums belong to this one
};

// Calls `take` with the runs of a share, `lines(i)` being the work of line i. The first may be the
// end of a tile, whose sum is then left for the share before; the last may be the beginning of one.
template <class LinesOf, class Take>
SPARSEDROP_HOST_DEVICE void deal_share(Shares const& shares, int32_t share, int32_t line_count,
                                       LinesOf lines, Cut cut, Cut end, Take take) {
  auto settle = [&](Cut& at) {
    while (at.line < line_count && at.tile >= lines(at.line).tiles()) {
      ++at.line;
      at.tile = 0;
    }
  };
  settle(cut);
  settle(end);
  while (!(cut.in_same_tile(end) && cut.k == end.k)) {
    LineWork const line = lines(cut.line);
    bool const is_last = cut.in_same_tile(end);
    int32_t const others = is_last && cut.k == 0 ? shares.count_behind(share, end, line) : 0;
    take(Run{cut.line, cut.tile, cut.k, (is_last ? end.k : line.live) - cut.k, others});
    if (is_last) {
      break;
    }
    ++cut.tile;
    cut.k = 0;
    settle(cut);
  }
}

}  // namespace sparsedrop
