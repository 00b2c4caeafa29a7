// Split-K: each split of a tile is a CTA of its own and sums up its share of the tile's live K
// tiles. All but the last split leave their sums in memory; the last adds them to its own, in the
// order of the splits, so that the result is the same in every run.

#pragma once

#include "gemm/sm90/barriers.hpp"
#include "gemm/sm90/config.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
struct Partials {
  static constexpr int kThreads = cutlass::NumThreadsPerWarpGroup;

  // True where `acc` now holds the sum of all splits: in the last one.
  template <class Accumulator>
  CUTLASS_DEVICE static bool add_up(PartialSums const& sums, Accumulator& acc, int warp_group) {
    auto const split = int32_t(blockIdx.x) / sums.tiles;
    if (split < sums.split_k - 1) {
      leave(sums, int32_t(blockIdx.x), acc, warp_group);
      return false;
    }
    // Those that are waited for have lower indices. CTAs start in the order of their indices, which
    // CUDA does not promise, but everything that waits within a grid builds upon: so they run.
    for (int32_t cta = int32_t(blockIdx.x) - split * sums.tiles; cta < int32_t(blockIdx.x);
         cta += sums.tiles) {
      add(sums, cta, acc, warp_group);
    }
    return true;
  }

 private:
  // A workspace comes with anything in it, and every launch leaves its flags cleared: anything else
  // has this value with a probability of 2^-64.
  static constexpr unsigned long long kLeft = 0x9d1f3b5c7a6e4802ull;

  static constexpr int kVectors = Traits::Config::kWarpGroupSums / kThreads / 4;

  // A warp group's accumulators as they lie in registers, vector by vector for all its threads.
  CUTLASS_DEVICE static float4* address_of(PartialSums const& sums, int32_t cta, int warp_group) {
    return reinterpret_cast<float4*>(sums.data) +
           (int64_t(cta) * kConsumerWarpGroups + warp_group) * kVectors * kThreads +
           threadIdx.x % kThreads;
  }
  CUTLASS_DEVICE static unsigned long long* flag_of(PartialSums const& sums, int32_t cta,
                                                    int warp_group) {
    return sums.flags + int64_t(cta) * kConsumerWarpGroups + warp_group;
  }

  // From L2: what lies in L1 may be older.
  CUTLASS_DEVICE static float4 load(float4 const* at) {
    float4 value;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(at)
                 : "memory");
    return value;
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void leave(PartialSums const& sums, int32_t cta, Accumulator const& acc,
                                   int warp_group) {
    float4* const out = address_of(sums, cta, warp_group);
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      __stcg(out + v * kThreads,
             make_float4(acc(4 * v), acc(4 * v + 1), acc(4 * v + 2), acc(4 * v + 3)));
    }
    meet(warp_group);
    if (threadIdx.x % kThreads == 0) {
      asm volatile("st.release.gpu.global.u64 [%0], %1;"
                   :
                   : "l"(flag_of(sums, cta, warp_group)), "l"(kLeft)
                   : "memory");
    }
  }

  template <class Accumulator>
  CUTLASS_DEVICE static void add(PartialSums const& sums, int32_t cta, Accumulator& acc,
                                 int warp_group) {
    if (threadIdx.x % kThreads == 0) {
      unsigned long long* const flag = flag_of(sums, cta, warp_group);
      unsigned long long value = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
      } while (value != kLeft);
      *flag = 0;
    }
    meet(warp_group);
    float4 const* const in = address_of(sums, cta, warp_group);
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float4 const value = load(in + v * kThreads);
      acc(4 * v) += value.x;
      acc(4 * v + 1) += value.y;
      acc(4 * v + 2) += value.z;
      acc(4 * v + 3) += value.w;
    }
  }
};

}  // namespace sparsedrop::sm90
