// Zeros in the dropped blocks of D, written by warps that have nothing else to do while others
// multiply: the tensor cores are not kept waiting by a store. They keep pace with the loads, or
// they would take up the memory when every CTA waits for operands that nobody has read yet.

#pragma once

#include "gemm/sm90/config.hpp"

#include <algorithm>

#include "schedule/ordering.hpp"

namespace sparsedrop::sm90 {

template <class Traits>
struct ZeroFill {
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  static constexpr int kVector = 16 / sizeof(Element);  // contiguous extents are multiples of it
  static constexpr bool kNMajor = Traits::Layouts::kD == Major::K;
  static constexpr int kRowVectors = (kNMajor ? Config::kSlotN : Config::kM) / kVector;

  // K tiles that the CTA has begun to load; kAllKTiles once it has begun the last.
  struct SharedStorage {
    int32_t begun;
  };
  static constexpr int32_t kAllKTiles = INT32_MAX;

  CUTLASS_DEVICE static void count_no_k_tile(SharedStorage& shared) { shared.begun = 0; }
  // Split and wide products have no mask on D, and nothing to count for.
  CUTLASS_DEVICE static void count_k_tile(SharedStorage& shared) {
    if constexpr (!Traits::kSplits && !Traits::kIsWide) {
      atomicAdd(&shared.begun, 1);  // which needs no register for the count
    }
  }
  CUTLASS_DEVICE static void count_all_k_tiles(SharedStorage& shared) {
    atomicExch(&shared.begun, kAllKTiles);
  }

  struct Params {
    Element* d;
    int64_t ld;
    int32_t m;
    int32_t n;
    int32_t pace;
  };

  // K tiles that a CTA begins to load for each slot that is passed, live or dropped: so few that
  // nearly all zeros are written before the last tile is finished. On an H200 1 to 3 K tiles a slot
  // save 1 to 3 % of dX at p = 0.7 (2048^3, 4096^3, 8192x4096x1024), three times as many no more.
  // The pace is one K tile a slot for every 16 K tiles of the problem, or for every 64 where
  // operands have masks and a CTA loads only some of them.
  static constexpr int32_t kMaxPerSlot = 2;
  static constexpr int32_t kKTilesForOne = 16;
  static constexpr int32_t kMaskedKTilesForOne = 64;
  static int32_t pace(int32_t k_tiles, bool has_other_masks) {
    return std::min(kMaxPerSlot, k_tiles / (has_other_masks ? kMaskedKTilesForOne : kKTilesForOne));
  }

  // The last warps of the first warp group.
  static constexpr int kFirstWarp = 2;
  static constexpr int32_t kFirstThread = kFirstWarp * cutlass::NumThreadsPerWarp;
  static constexpr int32_t kThreads = cutlass::NumThreadsPerWarpGroup - kFirstThread;

  // By those threads of each CTA: every ctas-th slot of every line of tiles, if D has a mask.
  CUTLASS_DEVICE static void run(Params const& params, Ordering const& by, SharedStorage& shared) {
    if (by.d_lines.words == nullptr) {
      return;
    }
    constexpr unsigned kPause = 100;  // nanoseconds, a third of what a K tile takes
    auto const thread = int32_t(threadIdx.x) - kFirstThread;
    int32_t const volatile* const begun = &shared.begun;
    Grid const& grid = by.grid;
    int32_t due = 0;
    for (auto i = int64_t(blockIdx.x); i < int64_t(grid.lines) * grid.slots; i += gridDim.x) {
      auto const line = int32_t(i / grid.slots);
      auto const slot = int32_t(i % grid.slots);
      int32_t const m = line * Config::kM;
      int32_t const n = slot * Config::kSlotN;
      due += params.pace;
      if (!by.slots.is_live(by.d_lines.of(m), slot)) {
        while (*begun < due) {
          __nanosleep(kPause);
        }
        int32_t const rows = min(Config::kM, params.m - m);
        int32_t const columns = min(Config::kSlotN, params.n - n);
        if (kNMajor) {
          fill(params.d + m * params.ld + n, params.ld, rows, columns, thread);
        } else {
          fill(params.d + n * params.ld + m, params.ld, columns, rows, thread);
        }
      }
    }
  }

 private:
  // Neighbouring threads write neighbouring vectors of one row, and go down the rows together.
  CUTLASS_DEVICE static void fill(Element* corner, int64_t ld, int32_t rows, int32_t contiguous,
                                  int32_t thread) {
    int32_t const column = thread % kRowVectors * kVector;
    int32_t const first = thread / kRowVectors;
    constexpr int32_t kStep = kThreads / kRowVectors;
    if (column < contiguous) {
      Element* at = corner + first * ld + column;
#pragma unroll 4
      for (int32_t row = first; row < rows; row += kStep) {
        __stcs(reinterpret_cast<uint4*>(at), make_uint4(0, 0, 0, 0));
        at += kStep * ld;
      }
    }
  }
};

}  // namespace sparsedrop::sm90
