// Accumulators -> act(alpha · acc + bias) -> D.

#pragma once

#include <cutlass/arch/barrier.h>

#include "gemm/config.hpp"

namespace sparsedrop {

// In place, as torch computes them in fp32; a NaN stays a NaN. The switch is outside of the loops:
// inside, every element would carry every branch.
template <int N>
CUTLASS_DEVICE void activate(Activation activation, float (&values)[N]) {
  if (activation == Activation::relu) {
    CUTLASS_PRAGMA_UNROLL
    for (float& x : values) {
      x = x < 0.0f ? 0.0f : x;
    }
  } else if (activation == Activation::gelu) {
    CUTLASS_PRAGMA_UNROLL
    for (float& x : values) {
      x = 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    }
  } else if (activation == Activation::silu) {
    CUTLASS_PRAGMA_UNROLL
    for (float& x : values) {
      x = x / (1.0f + __expf(-x));
    }
  }
}

template <class Traits>
struct Epilogue {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using Layouts = typename Traits::Layouts;
  using SharedStorage = typename Traits::SharedStorage;
  using StrideD = typename Traits::template Stride<Layouts::kD>;
  static constexpr int kStore = Traits::kStore;

  struct Arguments {
    Element* d;
    StrideD d_stride;
    int32_t m;
    int32_t n;
    Element const* bias;  // along the extent of D that is contiguous
    float alpha;
    Activation activation;
  };

  static auto make_tma_d(Element* d, int32_t m, int32_t n, StrideD stride) {
    return cute::make_tma_copy(
        cute::SM90_TMA_STORE{},
        cute::make_tensor(cute::make_gmem_ptr(d), cute::make_shape(m, n), stride),
        typename Traits::SmemD{}(cute::_, cute::_, cute::Int<0>{}));
  }

  struct Params {
    decltype(make_tma_d(nullptr, 0, 0, StrideD{})) tma_d;
    int32_t m;
    int32_t n;
    Element const* bias;
    float alpha;
    Activation activation;
  };

  static Params to_underlying_arguments(Arguments const& args) {
    return {make_tma_d(args.d, args.m, args.n, args.d_stride),
            args.m,
            args.n,
            args.bias,
            args.alpha,
            args.activation};
  }

  CUTLASS_DEVICE static void prefetch(Params const& params) {
    cute::prefetch_tma_descriptor(params.tma_d.get_tma_descriptor());
  }

  // One square of 64 through shared memory. `m` and `n` are its first row and column of D.
  template <class Fragment>
  CUTLASS_DEVICE static void store_square(Params const& params, Fragment const& values, int32_t m,
                                          int32_t n, int warp_group, int buffer,
                                          SharedStorage& shared) {
    using namespace cute;
    using StoreMatrix =
        conditional_t<Layouts::kD == Major::MN, SM90_U16x8_STSM_T, SM90_U32x4_STSM_N>;
    int const thread = threadIdx.x % cutlass::NumThreadsPerWarpGroup;
    bool const issues = thread == 0;
    int const slice = warp_group * Traits::kStoreBuffers + buffer;
    Tensor sD = make_tensor(make_smem_ptr(shared.d.data()), typename Traits::SmemD{});  // (64,64,B)

    // The store that last used this buffer has read it once all but the newest have.
    if (issues) {
      tma_store_wait<Traits::kStoreBuffers - 1>();
    }
    cutlass::arch::NamedBarrier::sync(cutlass::NumThreadsPerWarpGroup, warp_group);

    auto copy_to_smem = make_tiled_copy_C(Copy_Atom<StoreMatrix, Element>{}, square_mma());
    auto thread_copy = copy_to_smem.get_slice(thread);
    copy(copy_to_smem, thread_copy.retile_S(values), thread_copy.partition_D(sD(_, _, slice)));

    tma_store_fence();
    cutlass::arch::NamedBarrier::sync(cutlass::NumThreadsPerWarpGroup, warp_group);
    if (issues) {
      Tensor mD = params.tma_d.get_tma_tensor(make_shape(params.m, params.n));
      Tensor gD = local_tile(mD, Shape<Int<kStore>, Int<kStore>>{},
                             make_coord(m / kStore, n / kStore));  // (64,64)
      auto block = params.tma_d.get_slice(Int<0>{});
      copy(params.tma_d, block.partition_S(sD(_, _, slice)), block.partition_D(gD));
      tma_store_arrive();
    }
  }

  // Stores a consumer warp group's 64 rows of one output tile. `buffer` goes round the buffers from
  // tile to tile: a store may still read the one that was filled last.
  template <class Accumulator>
  CUTLASS_DEVICE static void store(Params const& params, TileRecord const& record,
                                   Accumulator const& acc, int warp_group, int& buffer,
                                   SharedStorage& shared) {
    using namespace cute;
    constexpr int kSquaresPerSlot = Config::kSlotN / kStore;
    int const thread = threadIdx.x % cutlass::NumThreadsPerWarpGroup;
    auto square_slice = square_mma().get_slice(thread);
    // Where this thread's values stand within a square of 64.
    Tensor place =
        square_slice.partition_C(make_identity_tensor(Shape<Int<kStore>, Int<kStore>>{}));
    auto fragment_layout =
        partition_fragment_C(square_mma(), Shape<Int<kStore>, Int<kStore>>{}).layout();
    constexpr int kValues = decltype(size(fragment_layout))::value;

    int32_t const m = record.m * Config::kM + warp_group * kStore;
    CUTLASS_PRAGMA_UNROLL
    for (int square = 0; square < Config::kN / kStore; ++square) {
      int32_t const slot = record.slot[square / kSquaresPerSlot];
      if (slot == kNoSlot) {
        continue;
      }
      int32_t const n = slot * Config::kSlotN + square % kSquaresPerSlot * kStore;
      float values[kValues];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        values[i] = params.alpha * acc(square * kValues + i);
      }
      if (params.bias != nullptr) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kValues; ++i) {
          values[i] += bias_at(params, m, n, place(i));
        }
      }
      activate(params.activation, values);
      Tensor rounded = make_tensor<Element>(fragment_layout);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        rounded(i) = Element(values[i]);
      }
      store_square(params, rounded, m, n, warp_group, buffer, shared);
      buffer = (buffer + 1) % Traits::kStoreBuffers;
    }
  }

  // Shared memory may not go away under a store that still reads it.
  CUTLASS_DEVICE static void finish() { cute::tma_store_wait<0>(); }

 private:
  CUTLASS_HOST_DEVICE static auto square_mma() {
    using namespace cute;
    return make_tiled_mma(
        GMMA::ss_op_selector<Element, Element, float, Shape<Int<kStore>, Int<kStore>, Int<64>>>());
  }

  template <class Place>
  CUTLASS_DEVICE static float bias_at(Params const& params, int32_t m, int32_t n,
                                      Place const& place) {
    bool const along_n = Layouts::kD == Major::K;
    int32_t const index = along_n ? n + int(cute::get<1>(place)) : m + int(cute::get<0>(place));
    return index < (along_n ? params.n : params.m) ? float(params.bias[index]) : 0.0f;
  }
};

}  // namespace sparsedrop
