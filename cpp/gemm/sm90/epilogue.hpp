// Accumulators -> act(alpha · acc + bias) -> D. Finishing a tile only computes what will be stored;
// it is stored square by square while the next tile is multiplied, or at once where it is the last.
// The pre-activation, where it is wanted, is stored at once: the wait is shorter than another pass
// over the result.

#pragma once

#include "gemm/sm90/config.hpp"

#include <cutlass/numeric_conversion.h>

#include "gemm/activation.hpp"
#include "gemm/sm90/barriers.hpp"
#include "gemm/sm90/squares.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
struct Epilogue {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using Layouts = typename Traits::Layouts;
  using Squares = sm90::Squares<Traits>;
  using Square = typename Squares::Square;
  using StrideD = typename Squares::StrideD;
  using TmaD = typename Squares::TmaD;
  static constexpr int kStore = Traits::kStore;
  static constexpr int kSquaresPerSlot = Config::kSlotN / kStore;
  static constexpr int kSquareSize = Squares::kSize;
  static constexpr int kValues = Squares::kValues;

  struct SharedStorage {
    alignas(1024) cute::array<Element, kSquareSize * Traits::kStoreBuffers * kConsumerWarpGroups> d;
  };

  struct Arguments {
    Element* d;
    Element* pre_activation;  // as d lies, or null
    StrideD d_stride;
    int32_t m;
    int32_t n;
    Element const* bias;  // along the extent of D that is contiguous
    float alpha;
    Activation activation;
  };

  struct Params {
    TmaD tma_d;
    int32_t m;
    int32_t n;
    Element const* bias;
    float alpha;
    Activation activation;
    bool has_pre_activation;
    TmaD tma_pre_activation;
  };

  static Params to_underlying_arguments(Arguments const& args) {
    bool const keeps = args.pre_activation != nullptr;
    TmaD const tma_d = Squares::make_tma(args.d, args.m, args.n, args.d_stride);
    return {tma_d,
            args.m,
            args.n,
            args.bias,
            args.alpha,
            args.activation,
            keeps,
            keeps ? Squares::make_tma(args.pre_activation, args.m, args.n, args.d_stride) : tma_d};
  }

  CUTLASS_DEVICE static void prefetch(Params const& params) {
    cute::prefetch_tma_descriptor(params.tma_d.get_tma_descriptor());
    if (Traits::kActivates && params.has_pre_activation) {
      cute::prefetch_tma_descriptor(params.tma_pre_activation.get_tma_descriptor());
    }
  }

  static constexpr int kSquares = Config::kWarpGroupN / kStore;

  // What one thread holds of a finished tile.
  struct Finished {
    Square squares[kSquares];
    int32_t m = 0;  // first row of the warp group
    int32_t slot[Config::kWarpGroupSlots] = {};
    int next = kSquares;  // the first square that is not stored yet
    int buffer = 0;       // goes round: a store may still read the one that was filled last
  };

  CUTLASS_DEVICE static bool is_stored(Finished const& finished) {
    return finished.next == kSquares;
  }

  // act(alpha · acc + bias) of a warp group's 64 rows, in place and then rounded. What few products
  // need is one branch for the whole tile: code that is jumped over is fetched from far away.
  template <class Accumulator>
  CUTLASS_DEVICE static void finish_tile(Params const& params, TileRecord const& record,
                                         Accumulator& acc, int warp_group, SharedStorage& shared,
                                         Finished& finished) {
    finished.next = 0;
    finished.m = record.m * Config::kM + Config::row_group(warp_group) * kWarpGroupRows;
    CUTLASS_PRAGMA_UNROLL
    for (int s = 0; s < Config::kWarpGroupSlots; ++s) {
      finished.slot[s] = Config::slot_of(record, warp_group, s);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < cute::size(acc); ++i) {
      acc(i) *= params.alpha;
    }
    if (params.bias != nullptr) {
      add_bias(params, finished, acc);
    }
    if constexpr (Traits::kActivates) {
      if (params.has_pre_activation) {
        store_pre_activation(params, acc, warp_group, shared, finished);
      }
      activate(params.activation, acc);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int square = 0; square < kSquares; ++square) {
      finished.squares[square] = round_square(acc, square);
    }
  }

  // Stores the next square of a finished tile, if there is one left.
  CUTLASS_DEVICE static void store_next(Params const& params, Finished& finished, int warp_group,
                                        SharedStorage& shared) {
    if (is_stored(finished)) {
      return;
    }
    // Registers have no index at run time.
    cute::for_each(cute::make_int_sequence<kSquares>{}, [&](auto square) {
      if (finished.next == square) {
        store_square(params.tma_d, params, square, finished.squares[square], finished, warp_group,
                     shared);
      }
    });
    ++finished.next;
  }

  // Stores the last tile of a CTA, all its squares at once: in the buffers, where a tile fits into
  // them, else in the stages of A, into which nothing more is loaded.
  CUTLASS_DEVICE static void store_last(Params const& params, Finished& finished, int warp_group,
                                        SharedStorage& shared, Element* stages_of_a) {
    if (is_stored(finished)) {
      return;
    }
    constexpr bool kFitsBuffers = kSquares <= Traits::kStoreBuffers;
    if constexpr (kFitsBuffers) {
      if (Squares::issues()) {
        cute::tma_store_wait<0>();
      }
      meet(warp_group);
    } else {
      // The other warp group may still read the last stages.
      meet_all_consumers();
    }
    auto address = [&](int square) {
      return kFitsBuffers ? buffer(shared, warp_group, square)
                          : stages_of_a + (square * Config::kRowGroups + warp_group) * kSquareSize;
    };
    static_assert(
        kFitsBuffers || (kSquares <= Config::kStages && Config::kRowGroups == kConsumerWarpGroups &&
                         Config::kM * Config::kK == Config::kRowGroups * kSquareSize),
        "each warp group has a square's room in each stage of A");
    CUTLASS_PRAGMA_UNROLL
    for (int square = 0; square < kSquares; ++square) {
      if (slot_of(finished, square) != kNoSlot) {
        Squares::write(finished.squares[square], address(square));
        send(params.tma_d, params, square, finished, address(square), warp_group);
      }
    }
    finished.next = kSquares;
  }

  // Shared memory may not go away under a store that still reads it.
  CUTLASS_DEVICE static void finish() { cute::tma_store_wait<0>(); }

 private:
  template <class Accumulator>
  CUTLASS_DEVICE static Square round_square(Accumulator const& acc, int square) {
    cutlass::Array<float, kValues> values;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kValues; ++i) {
      values[i] = acc(square * kValues + i);
    }
    return cutlass::NumericArrayConverter<Element, float, kValues>::convert(values);
  }

  // At once. What is left in `acc` are the rounded values: the activation's gradient will be taken
  // there.
  template <class Accumulator>
  CUTLASS_DEVICE static void store_pre_activation(Params const& params, Accumulator& acc,
                                                  int warp_group, SharedStorage& shared,
                                                  Finished& finished) {
    CUTLASS_PRAGMA_UNROLL
    for (int square = 0; square < kSquares; ++square) {
      Square values = round_square(acc, square);
      store_square(params.tma_pre_activation, params, square, values, finished, warp_group, shared);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        acc(square * kValues + i) = float(values[i]);
      }
    }
  }

  // Through a buffer of the warp group's.
  CUTLASS_DEVICE static void store_square(TmaD const& tma, Params const& params, int square,
                                          Square& values, Finished& finished, int warp_group,
                                          SharedStorage& shared) {
    if (slot_of(finished, square) == kNoSlot) {
      return;
    }
    Element* const at = buffer(shared, warp_group, finished.buffer);
    // The store that last used this buffer has read it once all but the newest have.
    if (Squares::issues()) {
      cute::tma_store_wait<Traits::kStoreBuffers - 1>();
    }
    meet(warp_group);
    Squares::write(values, at);
    send(tma, params, square, finished, at, warp_group);
    finished.buffer = (finished.buffer + 1) % Traits::kStoreBuffers;
  }

  CUTLASS_DEVICE static Element* buffer(SharedStorage& shared, int warp_group, int number) {
    return shared.d.data() + (warp_group * Traits::kStoreBuffers + number) * kSquareSize;
  }

  CUTLASS_DEVICE static void send(TmaD const& tma, Params const& params, int square,
                                  Finished const& finished, Element* at, int warp_group) {
    int32_t const column = column_of(slot_of(finished, square), square);
    Squares::send(tma, {params.m, params.n, finished.m, column}, at, warp_group);
  }

  CUTLASS_DEVICE static int32_t slot_of(Finished const& finished, int square) {
    return finished.slot[square / kSquaresPerSlot];
  }

  // First column of a tile's square of 64 in D.
  CUTLASS_DEVICE static int32_t column_of(int32_t slot, int square) {
    return slot * Config::kSlotN + square % kSquaresPerSlot * kStore;
  }

  // A thread has two neighbours of every eight columns of a square, in two rows.
  template <class Accumulator>
  CUTLASS_DEVICE static void add_bias(Params const& params, Finished const& finished,
                                      Accumulator& acc) {
    using namespace cute;
    Tensor coordinates = Squares::coordinates();
    if constexpr (Layouts::kD == Major::K) {
      using Pair = cutlass::AlignedArray<Element, 2>;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(acc); i += 4) {
        int const square = i / kValues;
        int32_t const slot = slot_of(finished, square);
        int32_t const column = column_of(slot, square) + int(get<1>(coordinates(i % kValues)));
        if (slot != kNoSlot && column < params.n) {
          Pair const pair = *reinterpret_cast<Pair const*>(params.bias + column);
          CUTLASS_PRAGMA_UNROLL
          for (int v = 0; v < 4; ++v) {
            acc(i + v) += float(pair[v % 2]);
          }
        }
      }
    } else {
      float of_row[2] = {};
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < 2; ++r) {
        int32_t const row = finished.m + int(get<0>(coordinates(2 * r)));
        of_row[r] = row < params.m ? float(params.bias[row]) : 0.0f;
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(acc); ++i) {
        acc(i) += of_row[i / 2 % 2];
      }
    }
  }
};

}  // namespace sparsedrop::sm90
