// Zeros in the dropped blocks of D: each CTA writes its share, a few slots with every tile that it
// stores, so that stores do not come all at once.

#pragma once

#include "gemm/sm80/config.hpp"

#include "gemm/sm80/instructions.hpp"
#include "schedule/ordering.hpp"

namespace sparsedrop::sm80 {

template <class Traits>
class ZeroFill {
 public:
  using Result = typename Traits::Result;
  using Config = typename Traits::Config;

  struct Params {
    Result* d;  // null: nothing is dropped
    int64_t ld;
    int32_t m;
    int32_t n;
    bool n_major;
  };

  SPARSEDROP_DEVICE ZeroFill(Params const& params, Ordering const& by) : params_(params), by_(by) {}

  // Slots to pass, live or dropped, with every tile: at p = 0.5, and below, all is done when the
  // last tile is.
  static constexpr int32_t kSlotsOfTile = 2 * Config::kSlots;

  // By all threads: passes the next `count` of this CTA's slots.
  SPARSEDROP_DEVICE void pass(int32_t count) {
    if (params_.d == nullptr) {
      return;
    }
    Grid const& grid = by_.grid;
    int64_t const all = int64_t(grid.lines) * grid.slots;
#pragma unroll 1
    for (; count > 0; --count, ++passed_) {
      int64_t const i = blockIdx.x + int64_t(passed_) * gridDim.x;
      if (i >= all) {
        return;
      }
      auto const line = int32_t(i / grid.slots);
      auto const slot = int32_t(i % grid.slots);
      int32_t const m = line * Config::kM;
      int32_t const n = slot * Config::kSlotN;
      if (!by_.slots.is_live(by_.d_lines.of(m), slot)) {
        int32_t const rows = min(Config::kM, params_.m - m);
        int32_t const columns = min(Config::kSlotN, params_.n - n);
        if (params_.n_major) {
          fill<Config::kSlotN>(params_.d + m * params_.ld + n, rows, columns);
        } else {
          fill<Config::kM>(params_.d + n * params_.ld + m, columns, rows);
        }
      }
    }
  }

  SPARSEDROP_DEVICE void pass_rest() { pass(INT32_MAX); }

 private:
  static constexpr int kVector =
      16 / int(sizeof(Result));  // contiguous extents are multiples of it

  // Neighbouring threads write neighbouring vectors of one row, and go down the rows together.
  template <int kMaxContiguous>
  SPARSEDROP_DEVICE void fill(Result* corner, int32_t rows, int32_t contiguous) const {
    constexpr int kRowVectors = kMaxContiguous / kVector;
    constexpr int32_t kStep = Config::kThreads / kRowVectors;
    int32_t const column = thread_id() % kRowVectors * kVector;
    int32_t const first = thread_id() / kRowVectors;
    if (column < contiguous) {
      Result* at = corner + first * params_.ld + column;
#pragma unroll 4
      for (int32_t row = first; row < rows; row += kStep) {
        __stcs(reinterpret_cast<uint4*>(at), make_uint4(0, 0, 0, 0));
        at += kStep * params_.ld;
      }
    }
  }

  Params const& params_;
  Ordering const& by_;
  int32_t passed_ = 0;
};

}  // namespace sparsedrop::sm80
