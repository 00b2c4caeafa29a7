// Masks -> the list of output tiles. One CTA: the grids are small, and one launch is cheaper than
// several that are each a little faster.
//
//   order    lines with the most live K tiles first, so that no long tile starts last
//   write    a group of lines at a time, walking along n in step so that they share operands

#include "schedule/tile_list.hpp"

#include "common/overlap.hpp"
#include "mask/k_tiles.hpp"
#include "mask/slots.hpp"
#include "schedule/warp_search.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = kThreads;   // of K tile counts, one a thread
constexpr int kFastLines = 1024;  // as many keep their scratch values in shared memory

struct Arguments {
  TileListRequest request;
  TileList list;
  SlotBits slot_bits;
};

constexpr int kScratchValues = 5;

// One value of each kind for each line of tiles.
struct Scratch {
  int32_t* k_tiles;  // live ones in A's line
  int32_t* order;    // lines in the order in which they are written
  int32_t* start;    // whole tiles in the lines before, by position in `order`
  int32_t* whole;    // tiles of live slots only, by line
  int32_t* rests;    // by line, then in the lines before it

  __device__ Scratch(int32_t* base, int32_t lines)
      : k_tiles(base),
        order(base + lines),
        start(base + 2 * lines),
        whole(base + 3 * lines),
        rests(base + 4 * lines) {}
};

// A kernel this short is bound by fetching its instructions: loops stay loops, and what is used
// twice is a function.

__device__ int warp_id() { return threadIdx.x / kWarp; }

// sums[i] = the sum of values[index[0]] ... values[index[i - 1]]; without an index, of values[0]
// ... Returns the whole sum. `sums` may be `values` where there is no index.
__device__ __noinline__ int32_t exclusive_sums(int32_t count, int32_t* sums, int32_t const* values,
                                               int32_t const* index) {
  __shared__ int32_t warp_sums[kWarps];
  int32_t carry = 0;
#pragma unroll 1
  for (int32_t base = 0; base < count; base += kThreads) {
    int32_t const i = base + int32_t(threadIdx.x);
    int32_t const value = i < count ? values[index == nullptr ? i : index[i]] : 0;
    int32_t const inclusive = inclusive_sum_in_warp(value);
    if (lane_id() == kWarp - 1) {
      warp_sums[warp_id()] = inclusive;
    }
    __syncthreads();
    // Every warp adds up the sums of the warps for itself: one barrier less.
    int32_t const of_warps = inclusive_sum_in_warp(warp_sums[lane_id()]);
    int32_t const through = __shfl_sync(kAllLanes, of_warps, warp_id());
    int32_t const own = __shfl_sync(kAllLanes, inclusive, kWarp - 1);
    if (i < count) {
      sums[i] = carry + through - own + inclusive - value;
    }
    carry += __shfl_sync(kAllLanes, of_warps, kWarp - 1);
    __syncthreads();
  }
  return carry;
}

// A counting sort by the number of live K tiles in A's line, most first. The order among equals is
// not repeatable and does not matter: every tile is computed the same way wherever it stands.
__device__ void order_lines(Arguments const& args, Scratch const& scratch) {
  Grid const& grid = args.request.grid;
  bool const sorts = args.request.a.words != nullptr;
  __shared__ int32_t bins[kBins];
  bins[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 1
  for (int32_t line = threadIdx.x; line < grid.lines; line += kThreads) {
    uint32_t const* a_line = args.request.a.of(line * args.request.tile_m);
    int32_t const count = KTiles(a_line, nullptr, grid.k_tiles).count();
    scratch.k_tiles[line] = count;
    if (sorts) {
      atomicAdd(&bins[order_bin(count, grid.k_tiles, kBins)], 1);
    } else {
      scratch.order[line] = line;
    }
  }
  __syncthreads();
  if (sorts) {
    exclusive_sums(kBins, bins, bins, nullptr);
#pragma unroll 1
    for (int32_t line = threadIdx.x; line < grid.lines; line += kThreads) {
      int32_t const bin = order_bin(scratch.k_tiles[line], grid.k_tiles, kBins);
      scratch.order[atomicAdd(&bins[bin], 1)] = line;
    }
    __syncthreads();
  }
}

// Live K tiles of the output tile that starts at `slot` of `line`.
__device__ int32_t count_k_tiles(Arguments const& args, Scratch const& scratch, int32_t line,
                                 int32_t slot) {
  TileListRequest const& request = args.request;
  if (request.b.words == nullptr) {
    return scratch.k_tiles[line];
  }
  return KTiles(request.a.of(line * request.tile_m), request.b.of(slot * request.slot_n),
                request.grid.k_tiles)
      .count();
}

// Without a mask on D one thread writes each record.
__device__ int32_t write_all_live(Arguments const& args, Scratch const& scratch) {
  Grid const& grid = args.request.grid;
  Records const records = grid.records(args.request.ctas);
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < records.count(); i += kThreads) {
    Piece const piece = records.at(i);
    Place const at = grid.place(piece);
    int32_t const line = scratch.order[at.position];
    int32_t const slot = at.tile * grid.slots_per_tile + piece.first_slot;
    args.list.records[i] =
        neighbouring_slots(grid, line, slot, piece.slots, count_k_tiles(args, scratch, line, slot));
  }
  return records.count();
}

// Writes what slot `slot`, the `at`-th of a tile of `slots`, contributes to its record, and what no
// other slot writes.
__device__ void write_slot(TileRecord& out, int32_t line, int32_t slot, int32_t at, int32_t slots,
                           int32_t k_tiles) {
  out.slot[at] = slot;
  if (at == 0) {
    out.m = line;
    out.k_tiles = k_tiles;
    out.k_before = 0;
    out.is_last = 0;
    for (int32_t s = slots; s < kMaxSlots; ++s) {
      out.slot[s] = kNoSlot;
    }
  }
}

__device__ void count_by_mask(Arguments const& args, Scratch const& scratch) {
  Grid const& grid = args.request.grid;
#pragma unroll 1
  for (int32_t line = threadIdx.x; line < grid.lines; line += kThreads) {
    uint32_t const* d_line = args.request.d.of(line * args.request.tile_m);
    int32_t whole = 0;
    int32_t rests = 0;
#pragma unroll 1
    for (int32_t first = 0; first < grid.slots; first += grid.slots_in_k_list()) {
      int32_t const last = min(first + grid.slots_in_k_list(), grid.slots);
      Gathering const tiles(args.slot_bits.count(d_line, first, last), grid.slots_per_tile);
      whole += tiles.whole;
      rests += tiles.rest != 0;
    }
    scratch.whole[line] = whole;
    scratch.rests[line] = rests;
  }
  __syncthreads();
}

// A warp makes tiles of the live slots of the line at `position`, list by list.
__device__ void write_line(Arguments const& args, Scratch const& scratch, Records const& records,
                           int32_t position) {
  Grid const& grid = args.request.grid;
  int32_t const per_tile = grid.slots_per_tile;
  int32_t const line = scratch.order[position];
  uint32_t const* d_line = args.request.d.of(line * args.request.tile_m);
  int32_t whole_before = 0;  // of the lists before
  int32_t rests_before = 0;
#pragma unroll 1
  for (int32_t first = 0; first < grid.slots; first += grid.slots_in_k_list()) {
    int32_t const last = min(first + grid.slots_in_k_list(), grid.slots);
    Gathering const tiles(args.slot_bits.count(d_line, first, last), per_tile);
#pragma unroll 1
    for (int32_t slot = first + lane_id(); slot < last; slot += kWarp) {
      if (!args.slot_bits.is_live(d_line, slot)) {
        continue;
      }
      Gathering::At const at = tiles.at(args.slot_bits.count(d_line, first, slot));
      int32_t const k_tiles = count_k_tiles(args, scratch, line, slot);
      if (at.tile == tiles.whole) {
        int32_t const before = scratch.rests[line] + rests_before;
        write_slot(args.list.records[records.first_rest() + before], line, slot, at.slot,
                   tiles.rest, k_tiles);
      } else {
        int32_t const tile = record_index(scratch.order, scratch.whole, scratch.start, grid.lines,
                                          grid.shift, {position, whole_before + at.tile});
        bool const is_kept = tile < records.kept_whole;
        write_slot(args.list.records[records.index_of(tile, at.slot)], line, slot,
                   is_kept ? at.slot : 0, is_kept ? per_tile : 1, k_tiles);
      }
    }
    whole_before += tiles.whole;
    rests_before += tiles.rest != 0;
  }
}

__device__ int32_t write_by_mask(Arguments const& args, Scratch const& scratch) {
  Grid const& grid = args.request.grid;
  count_by_mask(args, scratch);
  int32_t const whole = exclusive_sums(grid.lines, scratch.start, scratch.whole, scratch.order);
  int32_t const rests = exclusive_sums(grid.lines, scratch.rests, scratch.rests, nullptr);
  Records const records(whole, rests, grid.slots_per_tile, args.request.ctas);
#pragma unroll 1
  for (int32_t position = warp_id(); position < grid.lines; position += kWarps) {
    write_line(args, scratch, records, position);
  }
  return records.count();
}

__global__ void __launch_bounds__(kThreads) tile_list_kernel(Arguments const args) {
  // The masks, and what last used the workspace, are ready from here on; the product behind this
  // launch may start, and waits for this grid's end in turn.
  wait_for_launch_before();
  let_next_launch_start();
  __shared__ int32_t fast_scratch[kScratchValues * kFastLines];
  int32_t const lines = args.request.grid.lines;
  Scratch const scratch(lines <= kFastLines ? fast_scratch : args.list.scratch, lines);
  order_lines(args, scratch);
  int32_t const count = args.request.d.words == nullptr ? write_all_live(args, scratch)
                                                        : write_by_mask(args, scratch);
  if (threadIdx.x == 0) {
    *args.list.header = TileListHeader{count, args.request.ctas.value()};
  }
}

}  // namespace

TileList lay_out_list(Grid const& grid, int64_t max_records, Carver& carver) {
  TileList list;
  list.header = carver.take<TileListHeader>(1);
  list.records = carver.take<TileRecord>(max_records);
  list.scratch = carver.take<int32_t>(kScratchValues * grid.lines);
  return list;
}

cudaError_t make_tile_list(TileListRequest const& request, TileList const& list, bool overlaps,
                           cudaStream_t stream) {
  Arguments const args{request, list, SlotBits::of(request.slot_n, kMaskUnit)};
  return launch(tile_list_kernel, {1, kThreads, 0, stream, overlaps}, args);
}

}  // namespace sparsedrop
