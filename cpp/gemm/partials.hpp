// Partial sums of split tiles: from the accumulators to memory, and back into another CTA's.

#pragma once

#include <cutlass/arch/barrier.h>

#include "gemm/config.hpp"

namespace sparsedrop {

template <class Traits>
struct Partials {
  using Config = typename Traits::Config;
  static constexpr int kThreads = cutlass::NumThreadsPerWarpGroup;
  // float4s that a thread accumulates for one slot
  static constexpr int kSlotVectors = 64 * Config::kSlotN / kThreads / 4;
  static constexpr int kVectors = kSlotVectors * Config::kSlots;

  // The accumulators as they lie in registers, vector by vector, for all threads of a warp group.
  CUTLASS_DEVICE static float4* at(TileList const& list, int32_t partial, int warp_group) {
    auto* base = reinterpret_cast<float4*>(list.partials);
    int64_t const piece = int64_t(partial) * kConsumerWarpGroups + warp_group;
    return base + piece * kVectors * kThreads + threadIdx.x % kThreads;
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void leave(TileList const& list, Piece const& piece, Accumulator const& acc,
                                   int warp_group) {
    float4* const out = at(list, piece.partial, warp_group);
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
      int32_t* const flag = list.ready + piece.partial * kConsumerWarpGroups + warp_group;
      asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
    }
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void add(TileList const& list, Piece const& piece, Accumulator& acc,
                                 int warp_group) {
    // In order, so that the sum is the same in every run.
    for (int32_t i = 0; i < piece.add_count; ++i) {
      int32_t const partial = piece.add_first + i;
      await(list.ready + partial * kConsumerWarpGroups + warp_group, warp_group);
      float4 const* const in = at(list, partial, warp_group);
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
  // The CTA that sets the flag has a lower index and did that piece first: it runs already.
  CUTLASS_DEVICE static void await(int32_t const* flag, int warp_group) {
    if (threadIdx.x % kThreads == 0) {
      int32_t is_ready = 0;
      while (is_ready == 0) {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(is_ready) : "l"(flag) : "memory");
      }
    }
    cutlass::arch::NamedBarrier::sync(kThreads, warp_group);
  }
};

}  // namespace sparsedrop
