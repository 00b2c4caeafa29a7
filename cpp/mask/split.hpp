// Output tiles split along k where there are too few of them, or too few left, for all CTAs. Pure
// functions, for the host's tests too.

#pragma once

#include <cstdint>

#include "mask/bits.hpp"

namespace sparsedrop {

constexpr int32_t kMaxParts = 8;
// Meetings of two parts' sums that there is memory for.
constexpr int32_t kMaxMeetings = 160;

// What a CTA spends on a tile besides its K tiles, in halves of what one K tile takes: to fill the
// stages and for the epilogue; to leave a part's sum; to pick up another one.
constexpr int32_t kTileCost = 6;
constexpr int32_t kLeaveCost = 4;
constexpr int32_t kPickUpCost = 6;

// Of a tile's live K tiles, those before part `part` of `parts`.
SPARSEDROP_HOST_DEVICE int32_t k_tiles_before(int32_t k_tiles, int32_t part, int32_t parts) {
  return k_tiles * part / parts;
}

// The first `kept` whole tiles are computed whole, one for each CTA at a time. The others, and then
// the singles, are split into so many parts: the first parts of all, then the second, and so on, so
// that CTAs walk through k together.
struct SplitPlan {
  int32_t kept;
  int32_t split;    // whole tiles
  int32_t singles;
  int32_t parts;

  // `longest` and `mean` count the K tiles of a tile.
  SPARSEDROP_HOST_DEVICE static SplitPlan of(int32_t wholes, int32_t singles, int32_t longest,
                                             int32_t mean, int32_t ctas) {
    int32_t const split = wholes % ctas;
    int32_t const tiles = split + singles;
    int32_t best_parts = 1;
    int32_t best_time = 0;
    for (int32_t parts = 1; parts <= kMaxParts && tiles * (parts - 1) <= kMaxMeetings; ++parts) {
      auto const rounds = int32_t(ceil_div(tiles * parts, ctas));
      bool const ends_on_singles = tiles * parts - (rounds - 1) * ctas <= singles * parts;
      // Several tiles of a CTA even out; a single takes some five eighths of a whole one.
      int32_t const k_tiles = (rounds == 1 ? longest : mean) / parts;
      int32_t const eighths = 8 * rounds - (ends_on_singles ? 3 : 0);
      int32_t const in_parts = parts > 1 ? rounds * kLeaveCost + (parts - 1) * kPickUpCost : 0;
      int32_t const time = eighths * 2 * k_tiles / 8 + rounds * kTileCost + in_parts;
      if (parts == 1 || time < best_time) {
        best_time = time;
        best_parts = parts;
      }
    }
    return {wholes - split, split, singles, best_parts};
  }

  SPARSEDROP_HOST_DEVICE int32_t tiles() const { return split + singles; }
  SPARSEDROP_HOST_DEVICE int32_t count() const { return kept + parts * tiles(); }

  struct Part {
    bool is_single;
    int32_t number;  // of the single, or of the whole tile
    int32_t part;
    int32_t index;  // of the tile among those that are split, or -1
  };

  SPARSEDROP_HOST_DEVICE Part at(int32_t index) const {
    int32_t const after_kept = index - kept;
    if (after_kept < 0) {
      return {false, index, 0, -1};
    }
    int32_t const tile = after_kept % tiles();
    bool const is_single = tile >= split;
    return {is_single, is_single ? tile - split : kept + tile, after_kept / tiles(), tile};
  }
};

}  // namespace sparsedrop
