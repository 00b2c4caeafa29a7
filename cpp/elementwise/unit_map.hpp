// Which of a layer's units are live, as kernels look them up.

#pragma once

#include <cstdint>

#include "common/divisor.hpp"
#include "common/host_device.hpp"
#include "sparsedrop/live_units.h"

namespace sparsedrop {

class UnitMap {
 public:
  UnitMap() = default;
  explicit UnitMap(LiveUnits const& units)
      : count_(int32_t(units.count)),
        step_(int32_t(units.step)),
        first_(int32_t(units.first)),
        first_count_(int32_t(units.first_count)),
        second_(int32_t(units.second)) {}

  SPARSEDROP_HOST_DEVICE int32_t count() const { return count_; }

  // The unit in that place of a compact matrix.
  SPARSEDROP_HOST_DEVICE int32_t unit(int32_t place) const {
    return place < first_count_ ? first_ + place * step_.value()
                                : second_ + (place - first_count_) * step_.value();
  }

  // Its inverse; -1 if the unit is dropped.
  SPARSEDROP_HOST_DEVICE int32_t place(int32_t unit) const {
    int32_t const in_first = place_in(unit - first_, first_count_);
    if (in_first >= 0) {
      return in_first;
    }
    int32_t const in_second = place_in(unit - second_, count_ - first_count_);
    return in_second >= 0 ? first_count_ + in_second : -1;
  }

 private:
  SPARSEDROP_HOST_DEVICE int32_t place_in(int32_t distance, int32_t count) const {
    if (distance < 0) {
      return -1;
    }
    int32_t const found = distance / step_;
    return found < count && found * step_.value() == distance ? found : -1;
  }

  int32_t count_ = 0;
  Divisor step_ = 1;
  int32_t first_ = 0;
  int32_t first_count_ = 0;
  int32_t second_ = 0;
};

inline bool are_legal(LiveUnits const& of) {
  auto const fits = [](int64_t value) { return value >= 0 && value <= INT32_MAX; };
  return fits(of.count) && fits(of.first) && fits(of.second) && of.step >= 1 &&
         of.step <= INT32_MAX && of.first_count >= 0 && of.first_count <= of.count &&
         fits(of.first + of.step * of.first_count) &&
         fits(of.second + of.step * (of.count - of.first_count));
}

// Whether so many neighbours, from a multiple of that on, are live or dropped together and lie
// together in a compact matrix.
inline bool are_whole(LiveUnits const& of, int64_t neighbours) {
  return of.step == 1 && of.first % neighbours == 0 && of.first_count % neighbours == 0 &&
         of.second % neighbours == 0 && of.count % neighbours == 0;
}

}  // namespace sparsedrop
