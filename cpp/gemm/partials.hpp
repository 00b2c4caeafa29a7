// Sums of split tiles: from the accumulators to memory, and back into another CTA's.

#pragma once

#include <cutlass/arch/barrier.h>

#include "gemm/config.hpp"
#include "gemm/product.hpp"

namespace sparsedrop {

// A sum is there once its flag has this value; who takes the sum clears the flag. Every launch so
// leaves all flags cleared, and a workspace need not be: what else may stand in memory is this
// value with a probability of 2^-64.
constexpr uint64_t kReady = 0x9d1f3b5c7a6e4802;

template <class Traits>
struct Partials {
  using Config = typename Traits::Config;
  static constexpr int kThreads = cutlass::NumThreadsPerWarpGroup;
  // float4s that a thread accumulates for one slot
  static constexpr int kSlotVectors = 64 * Config::kSlotN / kThreads / 4;
  static constexpr int kVectors = kSlotVectors * Config::kSlots;

  template <class Accumulator>
  CUTLASS_DEVICE static void leave(PartialSums const& partials, Piece const& piece,
                                   Accumulator const& acc, int warp_group) {
    float4* const out = sum_at(partials, piece.share, warp_group);
    CUTLASS_PRAGMA_UNROLL
    for (int s = 0; s < Config::kSlots; ++s) {
      if (piece.tile.slot[s] != kNoSlot) {
        CUTLASS_PRAGMA_UNROLL
        for (int v = s * kSlotVectors; v < (s + 1) * kSlotVectors; ++v) {
          __stcg(out + v * kThreads,
                 make_float4(acc(4 * v), acc(4 * v + 1), acc(4 * v + 2), acc(4 * v + 3)));
        }
      }
    }
    __threadfence();
    cutlass::arch::NamedBarrier::sync(kThreads, warp_group);
    if (threadIdx.x % kThreads == 0) {
      asm volatile("st.release.gpu.global.u64 [%0], %1;"
                   :
                   : "l"(flag_at(partials, piece.share, warp_group)), "l"(kReady)
                   : "memory");
    }
  }

  // In order, so that the sum is the same in every run.
  template <class Accumulator>
  CUTLASS_DEVICE static void add(PartialSums const& partials, Piece const& piece, Accumulator& acc,
                                 int warp_group) {
    CUTLASS_PRAGMA_NO_UNROLL
    for (int32_t share = piece.share + 1; share <= piece.share + piece.others; ++share) {
      await(flag_at(partials, share, warp_group), warp_group);
      float4 const* const in = sum_at(partials, share, warp_group);
      CUTLASS_PRAGMA_UNROLL
      for (int s = 0; s < Config::kSlots; ++s) {
        if (piece.tile.slot[s] != kNoSlot) {
          CUTLASS_PRAGMA_UNROLL
          for (int v = s * kSlotVectors; v < (s + 1) * kSlotVectors; ++v) {
            float4 const value = __ldcg(in + v * kThreads);
            acc(4 * v) += value.x;
            acc(4 * v + 1) += value.y;
            acc(4 * v + 2) += value.z;
            acc(4 * v + 3) += value.w;
          }
        }
      }
    }
  }

 private:
  // The accumulators as they lie in registers, vector by vector, for all threads of a warp group.
  CUTLASS_DEVICE static float4* sum_at(PartialSums const& partials, int32_t share, int warp_group) {
    int32_t const half = share * kConsumerWarpGroups + warp_group;
    return reinterpret_cast<float4*>(partials.sums) + half * kVectors * kThreads +
           threadIdx.x % kThreads;
  }

  CUTLASS_DEVICE static uint64_t* flag_at(PartialSums const& partials, int32_t share,
                                          int warp_group) {
    return partials.ready + share * kConsumerWarpGroups + warp_group;
  }

  // The CTA that sets the flag has a lower index than this one: it runs, or has run.
  CUTLASS_DEVICE static void await(uint64_t* flag, int warp_group) {
    if (threadIdx.x % kThreads == 0) {
      uint64_t value = 0;
      while (value != kReady) {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
      }
      *flag = 0;
    }
    cutlass::arch::NamedBarrier::sync(kThreads, warp_group);
  }
};

}  // namespace sparsedrop
