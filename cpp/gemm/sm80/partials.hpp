// Split-K: each split of a tile is a CTA of its own and sums up its share of the tile's live K
// tiles. All but the last split leave their sums in memory; the last adds them to its own, in the
// order of the splits, so that the result is the same in every run.

#pragma once

#include "gemm/sm80/config.hpp"

#include "gemm/sm80/mainloop.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop::sm80 {

template <class Config>
struct Partials {
  using Accumulators = sm80::Accumulators<Config>;

  // By all threads: true where `acc` now holds the sum of all splits, in the last one.
  SPARSEDROP_DEVICE static bool add_up(PartialSums const& sums, Accumulators& acc) {
    auto const cta = int32_t(blockIdx.x);
    int32_t const split = cta / sums.tiles;
    if (split < sums.split_k - 1) {
      leave(sums, cta, acc.data());
      return false;
    }
    // Those that are waited for have lower indices. CTAs start in the order of their indices, which
    // CUDA does not promise, but everything that waits within a grid builds upon: so they run.
    for (int32_t other = cta - split * sums.tiles; other < cta; other += sums.tiles) {
      add(sums, other, acc.data());
    }
    return true;
  }

 private:
  // A workspace comes with anything in it, and every launch leaves its flags cleared: anything else
  // has this value with a probability of 2^-64.
  static constexpr unsigned long long kLeft = 0x9d1f3b5c7a6e4802ull;

  static constexpr int kVectors = Config::kSums / 4;
  static constexpr int kAtOnce = 4;  // loads under way: there are no registers for all
  static_assert(kVectors * 4 * Config::kThreads == Config::kM * Config::kN);

  // Accumulators as they lie in registers, vector by vector for all threads.
  SPARSEDROP_DEVICE static float4* address_of(PartialSums const& sums, int32_t cta) {
    return reinterpret_cast<float4*>(sums.data) + int64_t(cta) * kVectors * Config::kThreads +
           thread_id();
  }

  SPARSEDROP_DEVICE static void leave(PartialSums const& sums, int32_t cta, float const* acc) {
    float4* const out = address_of(sums, cta);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      __stcg(out + v * Config::kThreads,
             make_float4(acc[4 * v], acc[4 * v + 1], acc[4 * v + 2], acc[4 * v + 3]));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("st.release.gpu.global.u64 [%0], %1;"
                   :
                   : "l"(sums.flags + cta), "l"(kLeft)
                   : "memory");
    }
  }

  SPARSEDROP_DEVICE static void add(PartialSums const& sums, int32_t cta, float* acc) {
    if (threadIdx.x == 0) {
      unsigned long long* const flag = sums.flags + cta;
      unsigned long long value = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
      } while (value != kLeft);
      *flag = 0;
    }
    __syncthreads();
    float4 const* const in = address_of(sums, cta);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      // From L2: what lies in L1 may be older.
      float4 const value = __ldcg(in + v * Config::kThreads);
      acc[4 * v] += value.x;
      acc[4 * v + 1] += value.y;
      acc[4 * v + 2] += value.z;
      acc[4 * v + 3] += value.w;
      if (v % kAtOnce == kAtOnce - 1) {
        __syncwarp();
      }
    }
  }
};

}  // namespace sparsedrop::sm80
