// A warp's accumulators, rounded to D's type, to memory. Of every eight columns a lane has two
// neighbours in two rows; lanes trade them until whole sectors of 32 bytes are written. One lane
// alone reads and writes an element of D, so that a sum in place is the same in every run.

#pragma once

#include "gemm/sm80/config.hpp"

#include <cutlass/numeric_conversion.h>

#include "gemm/sm80/exchange.hpp"
#include "gemm/sm80/instructions.hpp"

namespace sparsedrop::sm80 {

// Where a warp's values stand in D.
struct Corner {
  int64_t ld;
  int32_t m;  // extents of D
  int32_t n;
  int32_t row;
  int32_t column;
};

// A lane's accumulators of 32 rows and a warp's columns.
struct Values {
  static constexpr int kRows = 32;
  static constexpr int kAtomsM = kRows / 16;
  static constexpr int kAtomsN = kWarpN / 8;
  static constexpr int kRowHalves = 2 * kAtomsM;  // eight rows each
  static constexpr int kCount = kAtomsM * kAtomsN * 4;
  float (*of)[kAtomsN][4];

  // The lane's two neighbours of a row, in the j-th eight columns.
  SPARSEDROP_DEVICE float* pair(int half, int j) const { return &of[half / 2][j][half % 2 * 2]; }
};

// Of 16 bits: a lane stores eight values at a time, four lanes 64 bytes.
template <class Result>
struct Stores {
  static_assert(sizeof(Result) == 2);

  SPARSEDROP_DEVICE static void store(Result* d, Corner const& at, bool n_major, bool,
                                      Values const& values) {
    if (n_major) {
      store_rows(d, at, values);
    } else {
      store_columns(d, at, values);
    }
  }

 private:
  static constexpr int kRowHalves = Values::kRowHalves;
  static constexpr int kAtomsN = Values::kAtomsN;
  static constexpr int kGroup = 4;  // of either are stored together
  static_assert(kRowHalves % kGroup == 0 && kAtomsN % kGroup == 0);

  SPARSEDROP_DEVICE static uint32_t rounded_pair(Values const& values, int half, int j) {
    cutlass::Array<float, 2> pair;
    pair[0] = values.pair(half, j)[0];
    pair[1] = values.pair(half, j)[1];
    auto const rounded = cutlass::NumericArrayConverter<Result, float, 2>::convert(pair);
    return reinterpret_cast<uint32_t const&>(rounded);
  }

  SPARSEDROP_DEVICE static void put(Result* to, bool is_inside, uint32_t const (&words)[4]) {
    if (is_inside) {
      *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  // n is contiguous.
  SPARSEDROP_DEVICE static void store_rows(Result* d, Corner const& at, Values const& values) {
    int32_t const lane = thread_id() % kWarp;
    int32_t const row = at.row + lane / kLanesPerRow;
    int32_t const column = at.column + 8 * (lane % kLanesPerRow);
    Result* to = d + row * at.ld + column;
#pragma unroll
    for (int half = 0; half < kRowHalves; ++half) {
#pragma unroll
      for (int j = 0; j < kAtomsN; j += kGroup) {
        uint32_t words[kGroup];
#pragma unroll
        for (int q = 0; q < kGroup; ++q) {
          words[q] = rounded_pair(values, half, j + q);
        }
        transpose_in_quad(words);
        put(to + 8 * j, row + 8 * half < at.m && column + 8 * j < at.n, words);
      }
      to += 8 * at.ld;
    }
  }

  // m is contiguous.
  SPARSEDROP_DEVICE static void store_columns(Result* d, Corner const& at, Values const& values) {
    int32_t const lane = thread_id() % kWarp;
    int32_t const row = at.row + 8 * (lane % kLanesPerRow);
    int32_t const column = at.column + lane / kLanesPerRow;
    Result* to = d + column * at.ld + row;
#pragma unroll
    for (int j = 0; j < kAtomsN; ++j) {
#pragma unroll
      for (int half = 0; half < kRowHalves; half += kGroup) {
        uint32_t words[kGroup];
#pragma unroll
        for (int q = 0; q < kGroup; ++q) {
          words[q] = transpose_matrix(rounded_pair(values, half + q, j));
        }
        transpose_in_quad(words);
        put(to + 8 * half, row + 8 * half < at.m && column + 8 * j < at.n, words);
      }
      to += 8 * at.ld;
    }
  }
};

// In fp32: a lane stores two values at a time, four lanes 32 bytes.
template <>
struct Stores<float> {
  SPARSEDROP_DEVICE static void store(float* d, Corner const& at, bool n_major, bool accumulates,
                                      Values const& values) {
    if (n_major) {
      store_pairs<true>(d, at, accumulates, values);
    } else {
      store_pairs<false>(d, at, accumulates, values);
    }
  }

 private:
  static constexpr int kRowHalves = Values::kRowHalves;
  static constexpr int kAtomsN = Values::kAtomsN;

  // Where m is contiguous, lanes of neighbouring rows have two columns each of both; then each has
  // one column of both rows.
  template <bool kNMajor>
  SPARSEDROP_DEVICE static void store_pairs(float* d, Corner const& at, bool accumulates,
                                            Values const& values) {
    int32_t const lane = thread_id() % kWarp;
    int32_t row = at.row + lane / kLanesPerRow;
    int32_t column = at.column + 2 * (lane % kLanesPerRow);
    if (!kNMajor && has_odd_row()) {
      --row;
      ++column;
    }
    int64_t const row_step = 8 * (kNMajor ? at.ld : 1);
    int64_t const column_step = 8 * (kNMajor ? 1 : at.ld);
    float* to = d + (kNMajor ? row * at.ld + column : column * at.ld + row);
#pragma unroll
    for (int half = 0; half < kRowHalves; ++half) {
      bool const has_row = row + 8 * half < at.m;
      float2 before[kAtomsN] = {};
      if (accumulates) {
#pragma unroll
        for (int j = 0; j < kAtomsN; ++j) {
          // Both of the pair, or neither: the contiguous extent is even.
          if (has_row && column + 8 * j < at.n) {
            // From L2: another CTA may write to the same 32 bytes.
            before[j] = __ldcg(reinterpret_cast<float2 const*>(to + j * column_step));
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kAtomsN; ++j) {
        float2 value = make_float2(values.pair(half, j)[0], values.pair(half, j)[1]);
        if (!kNMajor) {
          value = transpose_in_pair(value);
        }
        value.x += before[j].x;
        value.y += before[j].y;
        if (has_row && column + 8 * j < at.n) {
          __stcg(reinterpret_cast<float2*>(to + j * column_step), value);
        }
      }
      to += row_step;
    }
  }
};

}  // namespace sparsedrop::sm80
