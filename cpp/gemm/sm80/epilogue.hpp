// Accumulators -> act(alpha · acc + bias) -> D: from registers to memory, while the next tile's
// operands are on their way to the stages.

#pragma once

#include "gemm/sm80/config.hpp"

#include <cute/tensor.hpp>

#include <cutlass/numeric_conversion.h>

#include "gemm/activation.hpp"
#include "gemm/sm80/mainloop.hpp"
#include "gemm/sm80/stores.hpp"

namespace sparsedrop::sm80 {

template <class Traits>
struct Epilogue {
  using Element = typename Traits::Element;
  using Result = typename Traits::Result;
  using Config = typename Traits::Config;
  using Accumulators = sm80::Accumulators<Config>;
  using Stores = sm80::Stores<Result>;

  struct Params {
    Result* d;
    Result* pre_activation;  // as d lies, or null
    int64_t ld;
    int32_t m;
    int32_t n;
    bool n_major;
    bool accumulates;     // to D: where it is in fp32
    Element const* bias;  // along the extent of D that is contiguous
    float alpha;
    Activation activation;
  };

  // By whole warps, 32 rows at a time: that leaves registers for what comes between.
  SPARSEDROP_DEVICE static void store(Params const& params,
                                      typename Mainloop<Traits>::Place const& place,
                                      Accumulators& acc) {
    if (!place.has_slot()) {
      return;
    }
    Corner corner{params.ld, params.m, params.n, place.row, place.column};
#pragma unroll
    for (int i = 0; i < Accumulators::kAtomsM; i += Values::kAtomsM) {
      Values values{acc.of + i};
      store_rows(params, corner, values);
      corner.row += Values::kRows;
    }
  }

 private:
  SPARSEDROP_DEVICE static void store_rows(Params const& params, Corner const& corner,
                                           Values& values) {
    auto flat = cute::make_tensor(&values.of[0][0][0], cute::Layout<cute::Int<Values::kCount>>{});
    if (params.bias != nullptr) {
      scale_and_add_bias(params, corner, values);
    } else {
#pragma unroll
      for (int i = 0; i < Values::kCount; ++i) {
        flat(i) *= params.alpha;
      }
    }
    if constexpr (Traits::kActivates) {
      if (params.pre_activation != nullptr) {
        // What is left are the rounded values: the activation's gradient will be taken there.
#pragma unroll
        for (int i = 0; i < Values::kCount; ++i) {
          flat(i) = float(Result(flat(i)));
        }
        Stores::store(params.pre_activation, corner, params.n_major, false, values);
      }
      activate(params.activation, flat);
    }
    Stores::store(params.d, corner, params.n_major, params.accumulates, values);
  }

  // In one rounding, written out: the compiler would choose for each variant of the kernel anew,
  // and a pre-activation is to equal the product without activation.
  SPARSEDROP_DEVICE static void scale_and_add_bias(Params const& params, Corner const& corner,
                                                   Values& values) {
    auto const add = [&](float& value, float bias) { value = fmaf(params.alpha, value, bias); };
    int32_t const lane = thread_id() % kWarp;
    if (params.n_major) {
      using Pair = cutlass::AlignedArray<Element, 2>;
      int32_t const first = corner.column + lane % kLanesPerRow * 2;
#pragma unroll
      for (int j = 0; j < Values::kAtomsN; ++j) {
        int32_t const column = first + 8 * j;
        // Both of the pair, or neither: the contiguous extent is even.
        if (column < params.n) {
          Pair const pair = *reinterpret_cast<Pair const*>(params.bias + column);
#pragma unroll
          for (int half = 0; half < Values::kRowHalves; ++half) {
            add(values.pair(half, j)[0], float(pair[0]));
            add(values.pair(half, j)[1], float(pair[1]));
          }
        }
      }
    } else {
#pragma unroll
      for (int half = 0; half < Values::kRowHalves; ++half) {
        int32_t const row = corner.row + 8 * half + lane / kLanesPerRow;
        float const of_row = row < params.m ? float(params.bias[row]) : 0.0f;
#pragma unroll
        for (int j = 0; j < Values::kAtomsN; ++j) {
          add(values.pair(half, j)[0], of_row);
          add(values.pair(half, j)[1], of_row);
        }
      }
    }
  }
};

}  // namespace sparsedrop::sm80
