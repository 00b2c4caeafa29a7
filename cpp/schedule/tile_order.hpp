// In which order the tiles of a product stand in its list. Pure functions, for the host's tests
// too.

#pragma once

#include <cassert>
#include <cstdint>

#include "common/divisor.hpp"

namespace sparsedrop {

constexpr int kMaxSlots = 3;

// Lines of tiles that walk along n together are a group. Consecutive tiles run on neighbouring SMs,
// sixteen of which reach the L2 cache by one way: few lines, many tiles of each, share more of A,
// of which they need the same K tiles. Where B is more than stays in the cache, many lines read it
// less often. The bounds are measured on an H200 (2048^3 to 16384x4096x1024, groups of 2 to 16); a
// wide tile reads less, and gains less. One lane of a warp sums up a group.
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

// Lines with the most live K tiles get the lowest bin, so that no long tile starts last. A shift,
// not a division: it is the cheapest way to fit any count of K tiles into `bins`.
SPARSEDROP_HOST_DEVICE int32_t order_bin(int32_t live_k_tiles, int32_t k_tiles, int32_t bins) {
  int32_t shift = 0;
  while (k_tiles >> shift >= bins) {
    ++shift;
  }
  return (k_tiles - live_k_tiles) >> shift;
}

// Where tile `tile` of the line at `position` stands: within a group of lines all first tiles come
// first, then all second ones, and so on, so that the lines of a group read the same columns of B
// at the same time. `order` lists the lines, `tiles[line]` counts a line's tiles, and
// `start[position]` sums those of the lines before it in the order.
SPARSEDROP_HOST_DEVICE int32_t record_index(int32_t const* order, int32_t const* tiles,
                                            int32_t const* start, int32_t lines, int32_t shift,
                                            int32_t position, int32_t tile) {
  int32_t const first = position >> shift << shift;
  int32_t const end = first + (1 << shift);
  int32_t const last = end < lines ? end : lines;
  int32_t index = start[first];
  for (int32_t other = first; other < last; ++other) {
    int32_t const count = tiles[order[other]];
    index += (count < tile ? count : tile) + (other < position && count > tile ? 1 : 0);
  }
  return index;
}

struct GroupPlace {
  int32_t position;  // in the order of lines
  int32_t tile;
};

// Of slots in a row. A tile has two slots or three; the divisors are constants.
SPARSEDROP_HOST_DEVICE int32_t whole_tiles(int32_t slots, int32_t slots_per_tile) {
  return slots_per_tile == 2 ? slots / 2 : slots / 3;
}
SPARSEDROP_HOST_DEVICE int32_t rest_slots(int32_t slots, int32_t slots_per_tile) {
  return slots - slots_per_tile * whole_tiles(slots, slots_per_tile);
}

// The records of a product, whatever its masks: whole tiles, then split ones slot by slot, then the
// rests of the lines, which have fewer slots than a tile.
struct Records {
  int32_t whole;  // tiles of live slots only
  int32_t rests;  // of lines, where live slots do not fill a tile
  int32_t slots_per_tile;
  // Whole tiles that are given out whole. The others would be the last wave: slot by slot it may
  // take less time, where a tile has two.
  int32_t kept_whole;
  int32_t full_waves;  // of those
  // CTAs that are given no rest because they have a whole tile in the last wave.
  int32_t without_rests;

  Records() = default;
  SPARSEDROP_HOST_DEVICE Records(int32_t whole_, int32_t rests_, int32_t slots_per_tile_,
                                 Divisor const& ctas)
      : whole(whole_),
        rests(rests_),
        slots_per_tile(slots_per_tile_),
        kept_whole(whole_),
        full_waves(whole_ / ctas),
        without_rests(0) {
    int32_t const last = whole - full_waves * ctas.value();
    int32_t const idle = ctas.value() - last;
    if (last == 0) {
      return;
    }
    // Behind the full waves, in thirds of a whole tile's time: a single slot and a rest take two.
    int32_t mixed = 3;
    int32_t apart = 3;
    if (rests > idle) {
      mixed += 2 * waves_of(rests - idle, ctas);
      apart = 2 * ((rests + idle - 1) / idle);
    }
    int32_t const split = 2 * waves_of(rests + slots_per_tile * last, ctas);
    if (slots_per_tile == 2 && split < mixed && split < apart) {
      kept_whole -= last;
    } else if (apart < mixed) {
      without_rests = last;
    }
  }

  // The record that is the `turn`-th of a CTA; count() or more where it has none left. Every second
  // wave runs backwards, so that who got the longest tile of one wave gets the shortest of the
  // next.
  SPARSEDROP_HOST_DEVICE int32_t dealt(int32_t turn, int32_t cta, int32_t ctas) const {
    if (without_rests == 0 || turn < full_waves) {
      return turn * ctas + (turn % 2 == 0 ? cta : ctas - 1 - cta);
    }
    int32_t const place = full_waves % 2 == 0 ? cta : ctas - 1 - cta;
    if (place < without_rests) {
      return turn == full_waves ? turn * ctas + place : count();
    }
    return kept_whole + (turn - full_waves) * (ctas - without_rests) + place - without_rests;
  }

  // Record of the slot at `place` of whole tile `tile`; that of the tile where it is kept whole.
  SPARSEDROP_HOST_DEVICE int32_t index_of(int32_t tile, int32_t place) const {
    return tile < kept_whole ? tile : kept_whole + (tile - kept_whole) * slots_per_tile + place;
  }

  SPARSEDROP_HOST_DEVICE int32_t first_rest() const { return index_of(whole, 0); }
  SPARSEDROP_HOST_DEVICE int32_t count() const { return first_rest() + rests; }

  SPARSEDROP_HOST_DEVICE static int32_t waves_of(int32_t records, Divisor const& ctas) {
    return (records + ctas.value() - 1) / ctas;
  }

  struct Part {
    bool is_rest;
    int32_t number;  // of the rest, or of the whole tile
    int32_t place;   // the first slot of the tile that is meant
    int32_t slots;   // and how many; as many as are left, where it is a rest
  };

  SPARSEDROP_HOST_DEVICE Part at(int32_t index) const {
    if (index >= first_rest()) {
      return {true, index - first_rest(), 0, slots_per_tile};
    }
    int32_t const after_kept = index - kept_whole;
    return after_kept < 0 ? Part{false, index, 0, slots_per_tile}
                          : Part{false, kept_whole + whole_tiles(after_kept, slots_per_tile),
                                 rest_slots(after_kept, slots_per_tile), 1};
  }
};

// Fewer lines than one in so many are not cut narrower: 1 of 32 gained nothing on an H200.
constexpr int32_t kLeastNarrow = 4;

// All tiles of a product without a mask on D: every line has the same ones.
struct FullGrid {
  int32_t lines;           // of tiles, along m
  int32_t slots;           // along n
  int32_t slots_per_tile;  // 2 or 3
  int32_t slots_per_list;  // neighbours that share one list of K tiles; 0: all of a line
  int32_t k_tiles;         // of the problem
  int32_t tiles_per_line;  // whole ones
  int32_t shift;           // there are 1 << shift lines in a group
  Divisor tiles_per_group;

  SPARSEDROP_HOST_DEVICE FullGrid(int32_t lines_, int32_t slots_, int32_t slots_per_tile_,
                                  int32_t slots_per_list_, int32_t k_tiles_, int32_t group_shift_)
      : lines(lines_),
        slots(slots_),
        slots_per_tile(slots_per_tile_),
        slots_per_list(slots_per_list_),
        k_tiles(k_tiles_),
        tiles_per_line(whole_tiles(slots_, slots_per_tile_)),
        shift(group_shift_),
        tiles_per_group(tiles_per_line > 0 ? tiles_per_line << shift : 1) {
    assert(can_be_cut_into(slots_per_tile));
  }

  // Whether a line may be cut into tiles of so many slots, from its start on: all slots of each
  // tile then share one list of K tiles. A rest starts where a whole tile would, and is shorter.
  SPARSEDROP_HOST_DEVICE bool can_be_cut_into(int32_t slots_of_tile) const {
    return slots_per_list % slots_of_tile == 0;
  }

  // The same of another count of lines.
  SPARSEDROP_HOST_DEVICE FullGrid of_lines(int32_t count) const {
    return FullGrid(count, slots, slots_per_tile, slots_per_list, k_tiles, shift);
  }

  SPARSEDROP_HOST_DEVICE Records records(Divisor const& ctas) const {
    bool const has_rests = rest_slots(slots, slots_per_tile) != 0;
    return Records(lines * tiles_per_line, has_rests ? lines : 0, slots_per_tile, ctas);
  }

  // Where a record stands is a formula, the inverse of record_index.
  SPARSEDROP_HOST_DEVICE GroupPlace place(Records::Part const& part) const {
    if (part.is_rest) {
      return {part.number, tiles_per_line};
    }
    int32_t const in_group = 1 << shift;
    int32_t const first = part.number / tiles_per_group << shift;
    int32_t const within = part.number - first * tiles_per_line;
    int32_t const left = lines - first;
    return left < in_group ? GroupPlace{first + within % left, within / left}
                           : GroupPlace{first + (within & (in_group - 1)), within >> shift};
  }
};

// Lines that are cut into tiles a slot narrower than others, where else CTAs would be idle: those
// with the most live K tiles, which would take the longest.
struct NarrowLines {
  int32_t lines = 0;
  int32_t tiles_per_line = 0;
  Divisor in_step;  // the lines

  NarrowLines() = default;

  // As many of the grid's lines as leave a CTA for every tile, in one wave, if such tiles fit.
  SPARSEDROP_HOST_DEVICE NarrowLines(FullGrid const& grid, int32_t ctas) {
    int32_t const narrow_slots = grid.slots_per_tile - 1;
    auto const wide = int32_t(ceil_div(grid.slots, grid.slots_per_tile));
    auto const narrow = int32_t(ceil_div(grid.slots, narrow_slots));
    int32_t const idle = ctas - grid.lines * wide;
    if (idle > 0 && narrow > wide && grid.can_be_cut_into(narrow_slots)) {
      int32_t const fitting = idle / (narrow - wide);
      if (fitting * kLeastNarrow >= grid.lines) {
        lines = fitting < grid.lines ? fitting : grid.lines;
      }
      tiles_per_line = narrow;
      in_step = Divisor(lines > 0 ? lines : 1);
    }
  }

  SPARSEDROP_HOST_DEVICE int32_t count() const { return lines * tiles_per_line; }

  // Where the tile of a CTA stands: the lines walk along n together.
  SPARSEDROP_HOST_DEVICE GroupPlace place(int32_t index) const {
    int32_t const tile = index / in_step;
    return {index - tile * lines, tile};
  }
};

}  // namespace sparsedrop
