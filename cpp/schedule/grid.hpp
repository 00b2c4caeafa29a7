// The grid of a product's tiles, as if nothing of D were dropped: every line has the same ones. And
// the walk over it: the order in which neighbouring CTAs take tiles.

#pragma once

#include <cassert>
#include <cstdint>

#include "common/divisor.hpp"
#include "common/host_device.hpp"
#include "schedule/records.hpp"

namespace sparsedrop {

// Lines that walk along n together are a group. Consecutive tiles run on neighbouring SMs, sixteen
// of which share one path to the L2 cache: few lines, many tiles of each, share more of A, of which
// they need the same K tiles. Where B is more than stays in the cache, many lines read it less
// often. The bounds are measured on an H200 (2048^3 to 16384x4096x1024, groups of 2 to 16); a wide
// tile reads less, and gains less. One lane of a warp sums up a group.
constexpr int32_t kMaxGroups = 32;
constexpr int32_t kMaxGroupShift = 3;
constexpr int32_t kWideTile = 256;
constexpr int64_t kCachedBytes = 40 << 20;
constexpr int64_t kCachedBytesWide = 16 << 20;

// The logarithm of the lines in a group.
SPARSEDROP_HOST_DEVICE int32_t group_shift(int32_t lines, int32_t tile_n, int64_t b_bytes) {
  bool const is_cached = b_bytes <= (tile_n < kWideTile ? kCachedBytes : kCachedBytesWide);
  int32_t shift = is_cached ? 1 : kMaxGroupShift;
  while (shift < kMaxGroupShift && lines > kMaxGroups << shift) {
    ++shift;
  }
  return shift;
}

// A tile by its line's position in the order of lines, and by its number in the line.
struct Place {
  int32_t position;
  int32_t tile;
};

struct Grid {
  int32_t lines;             // of tiles, along m
  int32_t slots;             // along n
  int32_t slots_per_tile;    // 2 or 3
  int32_t slots_per_k_list;  // neighbours that share one list of K tiles; 0: all slots of a line
  int32_t k_tiles;           // of the problem
  int32_t tiles_per_line;    // whole ones
  int32_t shift;             // there are 1 << shift lines in a group
  Divisor tiles_per_group;

  SPARSEDROP_HOST_DEVICE Grid(int32_t line_count, int32_t slot_count, int32_t per_tile,
                              int32_t per_list, int32_t k_tile_count, int32_t group_shift)
      : lines(line_count),
        slots(slot_count),
        slots_per_tile(per_tile),
        slots_per_k_list(per_list),
        k_tiles(k_tile_count),
        tiles_per_line(whole_tiles(slot_count, per_tile)),
        shift(group_shift),
        tiles_per_group(tiles_per_line > 0 ? tiles_per_line << shift : 1) {
    assert(can_be_cut_into(slots_per_tile));
  }

  // Whether a line may be cut into tiles of so many slots, from its start on: all slots of each
  // tile then share one list of K tiles. A rest starts where a whole tile would, and is shorter; a
  // single slot always shares one.
  SPARSEDROP_HOST_DEVICE bool can_be_cut_into(int32_t slots_of_tile) const {
    return slots_per_k_list % slots_of_tile == 0;
  }

  SPARSEDROP_HOST_DEVICE int32_t slots_in_k_list() const {
    return slots_per_k_list > 0 ? slots_per_k_list : slots;
  }

  // The same of another count of lines.
  SPARSEDROP_HOST_DEVICE Grid of_lines(int32_t count) const {
    return Grid(count, slots, slots_per_tile, slots_per_k_list, k_tiles, shift);
  }

  SPARSEDROP_HOST_DEVICE Records records(Divisor const& ctas) const {
    bool const has_rests = rest_slots(slots, slots_per_tile) != 0;
    return Records(lines * tiles_per_line, has_rests ? lines : 0, slots_per_tile, ctas);
  }

  // Where a piece stands is a formula: the inverse of record_index, where all lines are alike.
  SPARSEDROP_HOST_DEVICE Place place(Piece const& piece) const {
    if (piece.is_rest) {
      return {piece.number, tiles_per_line};
    }
    int32_t const in_group = 1 << shift;
    int32_t const first = piece.number / tiles_per_group << shift;
    int32_t const within = piece.number - first * tiles_per_line;
    int32_t const left = lines - first;
    return left < in_group ? Place{first + within % left, within / left}
                           : Place{first + (within & (in_group - 1)), within >> shift};
  }
};

// Lines are cut narrower only if at least one in so many can be: 1 of 32 gained nothing on an H200.
constexpr int32_t kNarrowOneIn = 4;

// Lines that are cut into tiles a slot narrower than others, where CTAs would be idle otherwise:
// those with the most live K tiles, which would take the longest.
struct NarrowLines {
  int32_t lines = 0;
  int32_t tiles_per_line = 0;
  Divisor in_step;  // divides by `lines`

  NarrowLines() = default;

  // As many of the grid's lines as leave a CTA for every tile, in one wave, if such tiles fit.
  SPARSEDROP_HOST_DEVICE NarrowLines(Grid const& grid, int32_t ctas) {
    int32_t const narrow_slots = grid.slots_per_tile - 1;
    auto const wide = int32_t(ceil_div(grid.slots, grid.slots_per_tile));
    auto const narrow = int32_t(ceil_div(grid.slots, narrow_slots));
    int32_t const idle = ctas - grid.lines * wide;
    if (idle > 0 && narrow > wide && grid.can_be_cut_into(narrow_slots)) {
      int32_t const fitting = idle / (narrow - wide);
      if (fitting * kNarrowOneIn >= grid.lines) {
        lines = fitting < grid.lines ? fitting : grid.lines;
      }
      tiles_per_line = narrow;
      in_step = Divisor(lines > 0 ? lines : 1);
    }
  }

  SPARSEDROP_HOST_DEVICE int32_t count() const { return lines * tiles_per_line; }

  // The lines walk along n together, one narrow tile for each CTA.
  SPARSEDROP_HOST_DEVICE Place place(int32_t cta) const {
    int32_t const tile = cta / in_step;
    return {cta - tile * lines, tile};
  }
};

}  // namespace sparsedrop
