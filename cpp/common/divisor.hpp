// Division by a number that is known before a kernel starts. On the way to a CTA's first tile there
// are several, and the hardware's takes a tenth of a microsecond.

#pragma once

#include <cassert>
#include <cstdint>

#include "common/host_device.hpp"

namespace sparsedrop {

// Exact for dividends from 0 to 2^31 - 1 and divisors from 1 on: with 31 + ceil(log2(divisor))
// binary places, the rounded-up reciprocal has 32 bits and is close enough (Granlund and
// Montgomery, 1994).
class Divisor {
 public:
  Divisor() = default;
  SPARSEDROP_HOST_DEVICE Divisor(int32_t value) : value_(value) {  // NOLINT: stands for the number
    assert(value > 0);
    int32_t bits = 0;
    while ((int64_t(1) << bits) < value) {
      ++bits;
    }
    shift_ = 31 + bits;
    reciprocal_ = uint32_t((uint64_t(1) << shift_) / uint64_t(value) + 1);
  }

  SPARSEDROP_HOST_DEVICE int32_t value() const { return value_; }

  friend SPARSEDROP_HOST_DEVICE int32_t operator/(int32_t dividend, Divisor const& by) {
    return int32_t((uint64_t(uint32_t(dividend)) * by.reciprocal_) >> by.shift_);
  }

 private:
  int32_t value_ = 1;
  uint32_t reciprocal_ = 0x80000001u;
  int32_t shift_ = 31;
};

}  // namespace sparsedrop
