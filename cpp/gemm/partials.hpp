// Sums of the parts of a split tile: from accumulators to memory, and back into those of another CTA.
// Nobody waits for anybody.

#pragma once

#include <cutlass/arch/barrier.h>

#include "gemm/config.hpp"
#include "gemm/product.hpp"

namespace sparsedrop {

// Part 0 meets part 1, their sum meets part 2, and so on. At each meeting who comes first leaves its
// sum and who comes second goes on with both. As a + b is b + a, the result is the same in every run.
template <class Traits>
struct Partials {
  using Config = typename Traits::Config;
  using SharedStorage = typename Traits::SharedStorage;
  static constexpr int kThreads = cutlass::NumThreadsPerWarpGroup;
  // float4s that a thread accumulates for one slot
  static constexpr int kSlotVectors = 64 * Config::kSlotN / kThreads / 4;
  static constexpr int kVectors = kSlotVectors * Config::kSlots;

  // True for one part of a tile: `acc` holds the sum of all.
  template <class Accumulator>
  CUTLASS_DEVICE static bool add_up(PartialSums const& partials, Piece const& piece,
                                    Accumulator& acc, int warp_group, SharedStorage& shared) {
    int32_t meeting = piece.part == 0 ? 1 : piece.part;
    bool is_later_part = piece.part > 0;
    CUTLASS_PRAGMA_NO_UNROLL
    for (; meeting < piece.parts; ++meeting, is_later_part = false) {
      int32_t const index = meeting_of(piece, meeting) * kConsumerWarpGroups + warp_group;
      uint64_t* const flag = partials.flags + index;
      float4* const own = sum_at(partials, index, is_later_part);
      bool is_second = agree(warp_group, shared, [&] { return load(flag) == kLeft; });
      if (!is_second) {
        leave(piece, acc, own);
        __threadfence();
        is_second = agree(warp_group, shared, [&] { return exchange(flag) == kLeft; });
      }
      if (!is_second) {
        return false;
      }
      pick_up(piece, acc, sum_at(partials, index, !is_later_part));
      if (threadIdx.x % kThreads == 0) {
        *flag = 0;
      }
    }
    return true;
  }

 private:
  // A workspace comes with anything in it, and every launch leaves its flags cleared. What else may
  // be in memory is this value with a probability of 2^-64.
  static constexpr uint64_t kLeft = 0x9d1f3b5c7a6e4802;

  CUTLASS_DEVICE static uint64_t load(uint64_t const* flag) {
    uint64_t value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
    return value;
  }

  CUTLASS_DEVICE static uint64_t exchange(uint64_t* flag) {
    uint64_t before;
    asm volatile("atom.acq_rel.gpu.global.exch.b64 %0, [%1], %2;"
                 : "=l"(before)
                 : "l"(flag), "l"(kLeft)
                 : "memory");
    return before;
  }

  // One thread of the warp group decides for all. The barriers order what the others wrote before,
  // and what they read after.
  template <class Decide>
  CUTLASS_DEVICE static bool agree(int warp_group, SharedStorage& shared, Decide decide) {
    cutlass::arch::NamedBarrier::sync(kThreads, warp_group);
    if (threadIdx.x % kThreads == 0) {
      shared.decision[warp_group] = decide();
    }
    cutlass::arch::NamedBarrier::sync(kThreads, warp_group);
    return *static_cast<bool volatile*>(&shared.decision[warp_group]);
  }

  CUTLASS_DEVICE static int32_t meeting_of(Piece const& piece, int32_t meeting) {
    return piece.split_tile * (piece.parts - 1) + meeting - 1;
  }

  // The accumulators as they lie in registers, vector by vector, for all threads of a warp group;
  // one place for either side of a meeting.
  CUTLASS_DEVICE static float4* sum_at(PartialSums const& partials, int32_t index,
                                       bool is_later_part) {
    return reinterpret_cast<float4*>(partials.sums) +
           (2 * int64_t(index) + (is_later_part ? 1 : 0)) * kVectors * kThreads +
           threadIdx.x % kThreads;
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void leave(Piece const& piece, Accumulator const& acc, float4* out) {
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (piece.tile.slot[v / kSlotVectors] != kNoSlot) {
        __stcg(out + v * kThreads,
               make_float4(acc(4 * v), acc(4 * v + 1), acc(4 * v + 2), acc(4 * v + 3)));
      }
    }
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void pick_up(Piece const& piece, Accumulator& acc, float4 const* in) {
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (piece.tile.slot[v / kSlotVectors] != kNoSlot) {
        float4 const value = __ldcg(in + v * kThreads);
        acc(4 * v) += value.x;
        acc(4 * v + 1) += value.y;
        acc(4 * v + 2) += value.z;
        acc(4 * v + 3) += value.w;
      }
    }
  }
};

}  // namespace sparsedrop
