// Accumulators -> alpha · acc, or D + alpha · acc -> D in fp32: from registers to memory, as soon
// as a tile is multiplied. One thread alone reads and writes an element of D, so that a sum in
// place is the same in every run.

#pragma once

#include "gemm/sm90/config.hpp"

#include "gemm/sm90/squares.hpp"
#include "schedule/own_order.hpp"

namespace sparsedrop::sm90 {

// As Epilogue; what that does under the next tile is done here when a tile is finished.
template <class Traits>
struct WideEpilogue {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using Squares = sm90::Squares<Traits>;
  static constexpr bool kNMajor = Traits::Layouts::kD == Major::K;
  static constexpr int kStore = Traits::kStore;
  static constexpr int kSquares = Config::kWarpGroupN / kStore;
  static constexpr int kSquaresPerSlot = Config::kSlotN / kStore;
  static constexpr int kValues = Squares::kValues;

  // D does not pass through shared memory: only lines are sorted in it.
  struct SharedStorage {
    uint4 scratch[OwnOrder::kScratchBytes / sizeof(uint4)];
  };

  struct Arguments {
    float* d;
    int64_t ld;
    int32_t m;
    int32_t n;
    float alpha;
    bool accumulates;
  };

  using Params = Arguments;

  static Params to_underlying_arguments(Arguments const& args) { return args; }

  CUTLASS_DEVICE static void prefetch(Params const&) {}

  struct Finished {};

  CUTLASS_DEVICE static bool is_stored(Finished const&) { return true; }

  template <class Accumulator>
  CUTLASS_DEVICE static void finish_tile(Params const& params, TileRecord const& record,
                                         Accumulator& acc, int warp_group, SharedStorage&,
                                         Finished&) {
    int32_t const row = record.m * Config::kM + Config::row_group(warp_group) * kWarpGroupRows;
    CUTLASS_PRAGMA_UNROLL
    for (int square = 0; square < kSquares; ++square) {
      int32_t const slot = Config::slot_of(record, warp_group, square / kSquaresPerSlot);
      if (slot != kNoSlot) {
        int32_t const column = slot * Config::kSlotN + square % kSquaresPerSlot * kStore;
        store_square(params, place_of(params, row, column), acc, square);
      }
    }
  }

  CUTLASS_DEVICE static void store_next(Params const&, Finished&, int, SharedStorage&) {}

  CUTLASS_DEVICE static void store_last(Params const&, Finished&, int, SharedStorage&, Element*) {}

  CUTLASS_DEVICE static void finish() {}

 private:
  // What a thread has of a square are pairs: two neighbours of every eight columns, in two rows
  // eight apart, row by row. Where m is contiguous, it trades with the thread of the row beside its
  // own, so that what it stores are neighbours in memory again.
  static constexpr int kPairs = kValues / 2;
  static constexpr int kStep = 8;
  static constexpr int row_of(int pair) { return pair % 2 * kStep; }
  static constexpr int column_of(int pair) { return pair / 2 * kStep; }

  // Of a thread's first pair: its place in memory, and how many rows and columns of D there are
  // from it on.
  struct Place {
    float* d;
    int32_t rows;
    int32_t columns;
  };

  // In the square of D that begins in that row and column.
  CUTLASS_DEVICE static Place place_of(Params const& params, int32_t row, int32_t column) {
    auto const first = Squares::coordinates()(0);
    row += int32_t(cute::get<0>(first));
    column += int32_t(cute::get<1>(first));
    if (!kNMajor && is_odd_row()) {
      --row;
      ++column;
    }
    float* d = kNMajor ? params.d + row * params.ld + column  //
                       : params.d + column * params.ld + row;
    asm("" : "+l"(d));  // or ptxas works it out anew for every pair
    return {d, params.m - row, params.n - column};
  }

  CUTLASS_DEVICE static float2* address_of(Params const& params, Place const& place, int pair) {
    int64_t const offset = kNMajor ? row_of(pair) * params.ld + column_of(pair)
                                   : column_of(pair) * params.ld + row_of(pair);
    return reinterpret_cast<float2*>(place.d + offset);
  }

  // Both of the pair, or neither: the contiguous extent is even.
  CUTLASS_DEVICE static bool is_inside(Place const& place, int pair) {
    return row_of(pair) < place.rows && column_of(pair) < place.columns;
  }

  // By whole warps. The loads of a square are all under way before its first store.
  template <class Accumulator>
  CUTLASS_DEVICE static void store_square(Params const& params, Place const& place,
                                          Accumulator const& acc, int square) {
    float2 before[kPairs] = {};
    if (params.accumulates) {
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < kPairs; ++pair) {
        if (is_inside(place, pair)) {
          // From L2: another CTA may write to the same 32 bytes.
          before[pair] = __ldcg(address_of(params, place, pair));
        }
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      int const i = square * kValues + 2 * pair;
      float2 const sum = neighbours(acc(i), acc(i + 1));
      float2 const value = make_float2(fmaf(params.alpha, sum.x, before[pair].x),
                                       fmaf(params.alpha, sum.y, before[pair].y));
      if (is_inside(place, pair)) {
        __stcg(address_of(params, place, pair), value);
      }
    }
  }

  // Lanes of rows beside each other are so far apart.
  static constexpr unsigned kLanesPerRow = 4;

  CUTLASS_DEVICE static bool is_odd_row() { return (threadIdx.x & kLanesPerRow) != 0; }

  // The pair that a thread stores, of its own values in two columns of a row. Where m is
  // contiguous, the even row's thread gets the first column of both rows, the odd row's the second.
  CUTLASS_DEVICE static float2 neighbours(float first, float second) {
    if constexpr (kNMajor) {
      return make_float2(first, second);
    } else {
      bool const is_odd = is_odd_row();
      float const other = __shfl_xor_sync(0xffffffffu, is_odd ? first : second, kLanesPerRow);
      return is_odd ? make_float2(other, second) : make_float2(first, other);
    }
  }
};

}  // namespace sparsedrop::sm90
