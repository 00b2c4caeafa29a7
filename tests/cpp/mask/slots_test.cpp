#include "mask/slots.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sparsedrop {
namespace {

TEST(SlotBits, CountsAndFindsLiveSlots) {
  std::mt19937 random(5);
  for (int32_t units_per_slot : {1, 2}) {
    SlotBits const bits = SlotBits::of(64 * units_per_slot, 64);
    ASSERT_EQ(bits.units_per_slot, units_per_slot);
    for (int round = 0; round < 50; ++round) {
      int32_t const slots = 1 + int32_t(random() % 60);
      std::vector<bool> live(static_cast<size_t>(slots));
      std::vector<uint32_t> line(8, 0);
      std::vector<int32_t> live_slots;
      for (int32_t slot = 0; slot < slots; ++slot) {
        live[slot] = random() % 2;
        if (!live[slot]) continue;
        live_slots.push_back(slot);
        for (int32_t u = slot * units_per_slot; u < (slot + 1) * units_per_slot; ++u) {
          line[u / 32] |= 1u << (u % 32);
        }
      }
      EXPECT_EQ(bits.count(line.data(), 0, slots), int32_t(live_slots.size()));
      for (size_t rank = 0; rank < live_slots.size(); ++rank) {
        EXPECT_EQ(bits.count(line.data(), 0, live_slots[rank]), int32_t(rank));
      }
      // Bits behind the last slot stand for none.
      std::vector<uint32_t> longer = line;
      longer[slots * units_per_slot / 32] |= ~0u << (slots * units_per_slot % 32);
      std::vector<int32_t> found;
      for (int32_t w = 0; w < int32_t(longer.size()); ++w) {
        for (uint32_t word = bits.live_in_word(longer.data(), w, slots); word != 0;
             word &= word - 1) {
          found.push_back(bits.slot_of(32 * w + lowest_bit(word)));
        }
      }
      EXPECT_EQ(found, live_slots);
      for (int32_t slot = 0; slot < slots; ++slot) {
        EXPECT_EQ(bits.is_live(line.data(), slot), live[slot]);
        EXPECT_EQ(bits.count(line.data(), slot, slot + 1), int32_t(live[slot]));
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
