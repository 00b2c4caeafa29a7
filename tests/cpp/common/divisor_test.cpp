#include "common/divisor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <random>

namespace sparsedrop {
namespace {

TEST(Divisor, DividesLikeTheHardware) {
  std::mt19937 random(3);
  std::uniform_int_distribution<int32_t> any(0, INT32_MAX);
  auto check = [](int32_t dividend, int32_t divisor) {
    ASSERT_EQ(dividend / Divisor(divisor), dividend / divisor) << dividend << " / " << divisor;
  };
  for (int round = 0; round < 20000; ++round) {
    int32_t const divisor = round < 5000 ? round + 1 : std::max(any(random) >> (round % 31), 1);
    int32_t const multiple = any(random) / divisor * divisor;
    for (int32_t dividend : {0, divisor - 1, divisor, multiple, std::max(multiple, 1) - 1,
                             any(random), INT32_MAX - 1, INT32_MAX}) {
      check(dividend, divisor);
    }
  }
  EXPECT_EQ(Divisor(192).value(), 192);
  EXPECT_EQ(12 / Divisor(), 12);
}

}  // namespace
}  // namespace sparsedrop
