// The slots of one line of D's mask: 64 or 128 neighbouring columns, all live or all dropped.

#pragma once

#include "common/bits.hpp"

namespace sparsedrop {

// Instead of a slot: no slot.
constexpr int32_t kNoSlot = -1;

struct SlotBits {
  int32_t units_per_slot;  // mask units: 1 or 2
  uint32_t firsts;         // in a word, the first unit of each slot

  SPARSEDROP_HOST_DEVICE static constexpr SlotBits of(int32_t slot_n, int32_t unit) {
    return slot_n == unit ? SlotBits{1, 0xffffffffu} : SlotBits{2, 0x55555555u};
  }

  SPARSEDROP_HOST_DEVICE bool is_live(uint32_t const* line, int32_t slot) const {
    int32_t const unit = slot * units_per_slot;
    return (line[unit / 32] >> (unit % 32)) & 1u;
  }

  // The bits in word `w` of a line that stand for live ones among its first `slots`.
  SPARSEDROP_HOST_DEVICE uint32_t live_in_word(uint32_t const* line, int32_t w,
                                               int32_t slots) const {
    return line[w] & bits_in_word(slots * units_per_slot, w) & firsts;
  }

  SPARSEDROP_HOST_DEVICE int32_t slot_of(int32_t unit) const {
    return unit >> (units_per_slot - 1);
  }

  // Live slots among [first, last).
  SPARSEDROP_HOST_DEVICE int32_t count(uint32_t const* line, int32_t first, int32_t last) const {
    int32_t const begin = first * units_per_slot;
    int32_t const end = last * units_per_slot;
    int32_t live = 0;
    for (int32_t w = begin / 32; 32 * w < end; ++w) {
      live += count_bits(line[w] & bits_in_word(end, w) & ~bits_in_word(begin, w) & firsts);
    }
    return live;
  }
};

}  // namespace sparsedrop
