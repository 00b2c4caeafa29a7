// Equal shares without a list: each CTA adds up the work of all lines and finds its own part.

#pragma once

#include "gemm/ordering.hpp"
#include "mask/shares.hpp"

namespace sparsedrop {

struct OwnShares {
  // By line
  uint16_t live[kMaxOwnLines];   // K tiles
  uint16_t slots[kMaxOwnLines];  // live ones

  Shares shares;
  Cut cuts[2];  // where this CTA's share begins and ends

  // The last CTAs get the first shares: a CTA waits for sums of CTAs that started before it.
  CUTLASS_DEVICE static int32_t share() { return int32_t(gridDim.x) - 1 - int32_t(blockIdx.x); }

  // By all threads of the CTA: whether tiles are to be split. What a thread executes once is kept
  // short: its instructions come from far away.
  CUTLASS_DEVICE bool make(Ordering const& by) {
    constexpr int kWarp = cutlass::NumThreadsPerWarp;
    constexpr int kWarps = kMaxOwnLines / kWarp;
    constexpr unsigned kAll = 0xffffffffu;
    __shared__ int32_t work_of[kWarps], tiles_of[kWarps], longest_of[kWarps];
    auto const line = int32_t(threadIdx.x);
    int const lane = line % kWarp;
    LineWork own{0, 0, 0};
    if (line < by.grid.lines) {
      int32_t const live_slots = by.live_slots(line);
      own = line_of(by.live_k_tiles(line), live_slots, by.grid.slots_per_tile);
      live[line] = uint16_t(own.live);
      slots[line] = uint16_t(live_slots);
    }
    int32_t const work = own.total();
    int32_t end = work;  // of the lines up to this one
    if (line < kMaxOwnLines) {
      CUTLASS_PRAGMA_NO_UNROLL
      for (int offset = 1; offset < kWarp; offset *= 2) {
        int32_t const before = __shfl_up_sync(kAll, end, offset);
        end += lane >= offset ? before : 0;
      }
      int32_t const tiles = __reduce_add_sync(kAll, own.tiles());
      int32_t const longest = __reduce_max_sync(kAll, own.tiles() > 0 ? own.of_tile(0) : 0);
      if (lane == kWarp - 1) {
        work_of[line / kWarp] = end;
        tiles_of[line / kWarp] = tiles;
        longest_of[line / kWarp] = longest;
      }
    }
    __syncthreads();
    // Each warp for itself, its lanes going round the sums of all warps.
    int32_t const of_warp = work_of[lane % kWarps];
    int32_t const total = __reduce_add_sync(kAll, lane < kWarps ? of_warp : 0);
    int32_t const before = __reduce_add_sync(kAll, lane < line / kWarp && lane < kWarps ? of_warp : 0);
    int32_t const tiles = __reduce_add_sync(kAll, lane < kWarps ? tiles_of[lane] : 0);
    int32_t const longest = __reduce_max_sync(kAll, longest_of[lane % kWarps]);
    Shares const all = Shares::of(total, tiles, longest, int32_t(gridDim.x));
    if (!all.splits) {
      return false;
    }
    if (line == 0) {
      shares = all;
      cuts[0] = cuts[1] = Cut{by.grid.lines, 0, 0, total};
    }
    __syncthreads();
    end += before;
    if (share() < all.count) {
      CUTLASS_PRAGMA_NO_UNROLL
      for (int i = 0; i < 2; ++i) {
        int32_t const x = all.start(share() + i);
        if (end - work <= x && x < end) {
          cuts[i] = all.cut_in_line(x, line, own, end - work);
        }
      }
    }
    __syncthreads();
    return true;
  }

  // By one thread: calls `take` with the pieces of this CTA's share.
  template <class Take>
  CUTLASS_DEVICE void deal(Ordering const& by, Take take) const {
    if (share() >= shares.count) {
      return;
    }
    int32_t const per_tile = by.grid.slots_per_tile;
    deal_share(
        shares, share(), by.grid.lines,
        [&](int32_t line) { return line_of(live[line], slots[line], per_tile); }, cuts[0], cuts[1],
        [&](Run const& run) {
          int32_t const rank = run.tile * per_tile;
          int32_t const left = slots[run.line] - rank;
          take(Piece{by.tile_at(run.line, rank, left < per_tile ? left : per_tile, run.k_tiles),
                     run.first_k, share(), run.others});
        });
  }

 private:
  CUTLASS_DEVICE static LineWork line_of(int32_t live_k_tiles, int32_t live_slots,
                                         int32_t slots_per_tile) {
    // One or two: a shift and not a division.
    return slots_per_tile == 1 ? LineWork{live_k_tiles, live_slots, 0}
                               : LineWork{live_k_tiles, live_slots / 2, live_slots % 2};
  }
};

}  // namespace sparsedrop
