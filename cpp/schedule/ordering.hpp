// What the CTAs of a launch know of its schedule: the masks, the grid, and how its records are
// numbered and dealt. Pure functions of it; own_order.hpp has what a CTA finds out from the masks.

#pragma once

#include <cassert>

#include "mask/k_tiles.hpp"
#include "mask/lines.hpp"
#include "mask/slots.hpp"
#include "schedule/grid.hpp"
#include "schedule/schedule.hpp"
#include "schedule/tile_record.hpp"

namespace sparsedrop {

// Lines of tiles that a CTA keeps book of in the shared memory that the stages leave.
constexpr int32_t kMaxOwnLines = 256;

// Neighbouring slots of a line, before a mask on D has its say.
struct Span {
  int32_t position;  // of the line, in the order of lines
  int32_t slot;
  int32_t slots;  // 0: there is no record of this number
};

struct Ordering {
  MaskLines a_lines;
  MaskLines b_lines;
  MaskLines d_lines;
  Grid grid;
  // The tiles of the whole grid: those of narrow lines, then the records of the others.
  NarrowLines narrow;
  Grid others;
  Records records;
  int32_t tile_m;
  int32_t slot_n;
  SlotBits slots;
  Divisor ctas;
  bool one_wave;        // every CTA gets one tile at most
  bool known_by_index;  // and which one, it knows before lines are sorted

  // Whether CTAs can do without a list.
  static bool suits(ScheduleRequest const& request) {
    Grid const grid = grid_of(request);
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           !(request.b.exists() && request.d.exists());
  }

  static Ordering of(Schedule const& schedule) {
    ScheduleRequest const& request = schedule.request;
    Grid const grid = grid_of(request);
    bool const splits = request.split_k > 1;
    // A split takes whatever stands at its CTA's index for a tile, and counts its K tiles: an end
    // marker would be overwritten.
    assert(!splits || schedule.ctas == schedule.sums.tiles * schedule.sums.split_k);
    bool const one_wave =
        splits || (schedule.list.records == nullptr && has_one_wave(request, grid, schedule.ctas));
    NarrowLines narrow;
    if (one_wave && !splits && narrow_lines_pay(request)) {
      narrow = NarrowLines(grid, schedule.ctas);
    }
    Grid const others = grid.of_lines(grid.lines - narrow.lines);
    int32_t const other_ctas = schedule.ctas - narrow.count();
    return {request.a,
            request.b,
            request.d,
            grid,
            narrow,
            others,
            others.records(splits || other_ctas < 1 ? 1 : other_ctas),
            request.tile.m,
            request.tile.slot_n,
            SlotBits::of(request.tile.slot_n, kMaskUnit),
            schedule.ctas,
            one_wave,
            one_wave && (narrow.lines == 0 || narrow.lines == grid.lines)};
  }

  // The slots of record `index` of the whole grid.
  SPARSEDROP_HOST_DEVICE Span span(int32_t index) const {
    int32_t const per_tile = grid.slots_per_tile;
    if (index < narrow.count()) {
      Place const at = narrow.place(index);
      return {at.position, at.tile * (per_tile - 1), per_tile - 1};
    }
    index -= narrow.count();
    if (index >= records.count()) {
      return {0, 0, 0};
    }
    Piece const piece = records.at(index);
    Place const at = others.place(piece);
    return {narrow.lines + at.position, at.tile * per_tile + piece.first_slot, piece.slots};
  }

  // Its K tiles are not counted.
  SPARSEDROP_HOST_DEVICE TileRecord tile_of(Span const& span, int32_t line) const {
    return span.slots == 0 ? no_more_tiles()
                           : neighbouring_slots(grid, line, span.slot, span.slots, 0);
  }

  // The tile of a CTA that has one at most, if it is live; its K tiles are not counted. With a mask
  // on D, which leaves each CTA at most two slots then, only the live ones stay.
  SPARSEDROP_HOST_DEVICE TileRecord only_tile(Span const& span) const {
    TileRecord const tile = tile_of(span, span.position);
    if (d_lines.words == nullptr || tile.k_tiles == kNoMoreTiles) {
      return tile;
    }
    uint32_t const* const line = d_lines.of(tile.m * tile_m);
    int32_t const slot = tile.slot[0];
    bool const is_live = slots.is_live(line, slot);
    if (tile.slot[1] == kNoSlot || !slots.is_live(line, slot + 1)) {
      return is_live ? neighbouring_slots(grid, tile.m, slot, 1, 0) : no_more_tiles();
    }
    return is_live ? tile : neighbouring_slots(grid, tile.m, slot + 1, 1, 0);
  }

  // Whether lines of tiles have K tiles of their own, by which they are sorted.
  SPARSEDROP_HOST_DEVICE bool lines_differ() const { return a_lines.words != nullptr; }

  SPARSEDROP_HOST_DEVICE int32_t live_k_tiles(int32_t line) const {
    return KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count();
  }

  // The live K tiles of a record's tile, whatever the masks and whichever split it is.
  SPARSEDROP_HOST_DEVICE KTiles k_tiles_of(TileRecord const& tile) const {
    return KTiles(a_lines.of(tile.m * tile_m), b_lines.of(tile.slot[0] * slot_n), grid.k_tiles);
  }

  SPARSEDROP_HOST_DEVICE int32_t live_slots(int32_t line) const {
    return slots.count(d_lines.of(line * tile_m), 0, grid.slots);
  }

 private:
  // With a mask on D, a CTA's one tile is its share of the grid, live or dropped: one slot, or two
  // that are multiplied at once.
  static bool has_one_wave(ScheduleRequest const& request, Grid const& grid, int32_t ctas) {
    bool const by_record = !request.d.exists() || request.has_parallel_slots;
    bool const by_slot = grid.slots_per_tile == 2 && grid.lines * grid.slots <= ctas;
    return by_record ? grid.records(ctas).count() <= ctas : by_slot;
  }

  // Where lines differ in their live K tiles. Slots that are multiplied at once take as long alone
  // as together.
  static bool narrow_lines_pay(ScheduleRequest const& request) {
    return request.a.exists() && !request.d.exists() && !request.has_parallel_slots;
  }
};

}  // namespace sparsedrop
