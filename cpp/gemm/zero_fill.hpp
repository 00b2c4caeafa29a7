// Zeros in the dropped blocks of D, written by warps that have nothing else to do while others
// multiply: the tensor cores are not kept waiting by a store. They keep pace with the loads, or
// they would take up the memory just when every CTA waits for its first operands.

#pragma once

#include "gemm/config.hpp"
#include "gemm/ordering.hpp"

namespace sparsedrop {

template <class Traits>
struct ZeroFill {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  static constexpr unsigned kPauseNanoseconds = 100;
  static constexpr int kVector = 16 / sizeof(Element);  // contiguous extents are multiples of it
  static constexpr bool kNMajor = Traits::Layouts::kD == Major::K;
  static constexpr int kRowVectors = (kNMajor ? Config::kSlotN : Config::kM) / kVector;

  struct Params {
    Element* d;
    int64_t ld;
    int32_t m;
    int32_t n;
  };

  // K tiles that are loaded for each slot that is passed: the zeros are written well before the
  // end, and where there are too few loads, with the last one. On an H200, 1 to 4 % of a product at
  // p = 0.7 beside all zeros at once; three times as slow a pace was no better.
  static constexpr int32_t kLoadsPerSlot = 2;

  // By `threads` threads of each CTA: every ctas-th slot of every line of tiles. `loads` counts the
  // K tiles that the CTA has loaded.
  CUTLASS_DEVICE static void run(Params const& params, Ordering const& by,
                                 int32_t const volatile* loads, int32_t thread, int32_t threads) {
    FullGrid const& grid = by.grid;
    int32_t due = 0;
    for (auto i = int64_t(blockIdx.x); i < int64_t(grid.lines) * grid.slots; i += gridDim.x) {
      auto const line = int32_t(i / grid.slots);
      auto const slot = int32_t(i % grid.slots);
      int32_t const m = line * Config::kM;
      int32_t const n = slot * Config::kSlotN;
      due += kLoadsPerSlot;
      if (!by.slots.is_live(by.d_lines.of(m), slot)) {
        while (*loads < due) {
          __nanosleep(kPauseNanoseconds);
        }
        int32_t const rows = min(Config::kM, params.m - m);
        int32_t const columns = min(Config::kSlotN, params.n - n);
        if (kNMajor) {
          fill(params.d + m * params.ld + n, params.ld, rows, columns, thread, threads);
        } else {
          fill(params.d + n * params.ld + m, params.ld, columns, rows, thread, threads);
        }
      }
    }
  }

 private:
  // Neighbouring threads write neighbouring vectors of one row, and go down the rows together.
  CUTLASS_DEVICE static void fill(Element* corner, int64_t ld, int32_t rows, int32_t contiguous,
                                  int32_t thread, int32_t threads) {
    int32_t const column = thread % kRowVectors * kVector;
    int32_t const first = thread / kRowVectors;
    int32_t const step = threads / kRowVectors;
    if (column < contiguous) {
      Element* at = corner + first * ld + column;
#pragma unroll 4
      for (int32_t row = first; row < rows; row += step) {
        __stcs(reinterpret_cast<uint4*>(at), make_uint4(0, 0, 0, 0));
        at += step * ld;
      }
    }
  }
};

}  // namespace sparsedrop
