#include "mask/philox.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace sparsedrop {
namespace {

std::vector<uint32_t> words(Philox4 const& drawn) { return {drawn.word, drawn.word + 4}; }

// The known answers that the authors of Philox publish with Random123.
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(words(philox(0, 0, 0)),
            (std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words(philox(~uint64_t(0), ~uint64_t(0), ~uint64_t(0))),
            (std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e)),
            (std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

}  // namespace
}  // namespace sparsedrop
