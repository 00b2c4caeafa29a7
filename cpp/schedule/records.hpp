// The records of a product: how its tiles are handed out, and which CTA gets which.

#pragma once

#include <cstdint>

#include "common/divisor.hpp"
#include "common/host_device.hpp"

namespace sparsedrop {

// A tile has two slots or three; the divisors are constants.
SPARSEDROP_HOST_DEVICE int32_t whole_tiles(int32_t slots, int32_t slots_per_tile) {
  return slots_per_tile == 2 ? slots / 2 : slots / 3;
}
SPARSEDROP_HOST_DEVICE int32_t rest_slots(int32_t slots, int32_t slots_per_tile) {
  return slots - slots_per_tile * whole_tiles(slots, slots_per_tile);
}

// What one record stands for: a whole tile, one slot of it, or the rest of a line.
struct Piece {
  bool is_rest;
  int32_t number;      // of the whole tile, or of the rest, in the order of the walk
  int32_t first_slot;  // within the tile
  int32_t slots;       // of a rest: at most so many
};

// Records are numbered: first the tiles that stay whole, then the others slot by slot, then the
// rests of the lines, which have fewer slots than a tile.
struct Records {
  int32_t whole;  // tiles of live slots only
  int32_t rests;  // lines whose live slots do not fill their last tile
  int32_t slots_per_tile;
  // Tiles that stay whole. The others would be the last wave: slot by slot it may take less time,
  // where a tile has two.
  int32_t kept_whole;
  int32_t full_waves;  // of whole tiles
  // CTAs that are given no rest because they have a whole tile in the last wave.
  int32_t without_rests;

  Records() = default;
  SPARSEDROP_HOST_DEVICE Records(int32_t whole_count, int32_t rest_count, int32_t per_tile,
                                 Divisor const& ctas)
      : whole(whole_count),
        rests(rest_count),
        slots_per_tile(per_tile),
        kept_whole(whole_count),
        full_waves(whole_count / ctas),
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

  // Number of the record that a CTA takes at its `turn`, counted from 0; count() or more where it
  // has no more. Every second wave runs backwards, so that the CTA with the longest tile of one
  // wave gets the shortest of the next.
  SPARSEDROP_HOST_DEVICE int32_t dealt(int32_t turn, int32_t cta, int32_t ctas) const {
    if (without_rests == 0 || turn < full_waves) {
      return turn * ctas + (turn % 2 == 0 ? cta : ctas - 1 - cta);
    }
    int32_t const in_wave = full_waves % 2 == 0 ? cta : ctas - 1 - cta;
    if (in_wave < without_rests) {
      return turn == full_waves ? turn * ctas + in_wave : count();
    }
    return kept_whole + (turn - full_waves) * (ctas - without_rests) + in_wave - without_rests;
  }

  // Number of the record that holds slot `slot` of whole tile `tile`.
  SPARSEDROP_HOST_DEVICE int32_t index_of(int32_t tile, int32_t slot) const {
    return tile < kept_whole ? tile : kept_whole + (tile - kept_whole) * slots_per_tile + slot;
  }

  SPARSEDROP_HOST_DEVICE int32_t first_rest() const { return index_of(whole, 0); }
  SPARSEDROP_HOST_DEVICE int32_t count() const { return first_rest() + rests; }

  SPARSEDROP_HOST_DEVICE static int32_t waves_of(int32_t records, Divisor const& ctas) {
    return (records + ctas.value() - 1) / ctas;
  }

  SPARSEDROP_HOST_DEVICE Piece at(int32_t index) const {
    if (index >= first_rest()) {
      return {true, index - first_rest(), 0, slots_per_tile};
    }
    int32_t const behind_kept = index - kept_whole;
    return behind_kept < 0 ? Piece{false, index, 0, slots_per_tile}
                           : Piece{false, kept_whole + whole_tiles(behind_kept, slots_per_tile),
                                   rest_slots(behind_kept, slots_per_tile), 1};
  }
};

}  // namespace sparsedrop
