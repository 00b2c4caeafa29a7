// Masks -> the list of output tiles. One CTA: the grids are small, and one launch is cheaper than
// several that are each a little faster.
//
//   order    lines with the most live K tiles first, so that no long tile starts last
//   write    a group of lines at a time, walking along n in step so that they share operands

#include "schedule/tile_list.hpp"

#include "common/overlap.hpp"
#include "common/workspace.hpp"
#include "mask/k_tiles.hpp"
#include "mask/slots.hpp"
#include "schedule/tile_order.hpp"
#include "schedule/warp_search.hpp"

namespace sparsedrop {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = kThreads;   // of K tile counts, one a thread
constexpr int kFastLines = 1024;  // as many keep their scratch values in shared memory

struct Geometry {
  FullGrid grid;
  int32_t slots_per_class;  // neighbouring slots that share their list of K tiles
  SlotBits slot_bits;
};

struct Arguments {
  Geometry geometry;
  TileListRequest request;
  TileList list;
};

constexpr int kScratchValues = 5;

// One value of each kind for each line of tiles.
struct Scratch {
  int32_t* k_tiles;  // live ones in A's line
  int32_t* order;    // lines in the order in which they are written
  int32_t* start;    // whole tiles in the lines before, by position in `order`
  int32_t* whole;    // tiles of live slots only, by line
  int32_t* rests;    // of live slots that do not fill a tile, by line; then, in the lines before

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
  Geometry const& g = args.geometry;
  bool const sorts = args.request.a.words != nullptr;
  __shared__ int32_t bins[kBins];
  bins[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 1
  for (int32_t line = threadIdx.x; line < g.grid.lines; line += kThreads) {
    uint32_t const* a_line = args.request.a.of(line * args.request.tile.m);
    int32_t const count = KTiles(a_line, nullptr, g.grid.k_tiles).count();
    scratch.k_tiles[line] = count;
    if (sorts) {
      atomicAdd(&bins[order_bin(count, g.grid.k_tiles, kBins)], 1);
    } else {
      scratch.order[line] = line;
    }
  }
  __syncthreads();
  if (sorts) {
    exclusive_sums(kBins, bins, bins, nullptr);
#pragma unroll 1
    for (int32_t line = threadIdx.x; line < g.grid.lines; line += kThreads) {
      int32_t const bin = order_bin(scratch.k_tiles[line], g.grid.k_tiles, kBins);
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
  return KTiles(request.a.of(line * request.tile.m), request.b.of(slot * request.tile.slot_n),
                args.geometry.grid.k_tiles)
      .count();
}

// Without a mask on D one thread writes each record.
__device__ int32_t write_all_live(Arguments const& args, Scratch const& scratch) {
  FullGrid const& grid = args.geometry.grid;
  Records const records = grid.records(args.request.ctas);
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < records.count(); i += kThreads) {
    Records::Part const part = records.at(i);
    GroupPlace const at = grid.place(part);
    int32_t const line = scratch.order[at.position];
    int32_t const slot = at.tile * grid.slots_per_tile + part.place;
    args.list.records[i] =
        grid_tile(grid, line, slot, part.slots, count_k_tiles(args, scratch, line, slot));
  }
  return records.count();
}

// What the slot at `place` of a tile of `slots` contributes to its record. Each slot writes a part
// that is its own.
__device__ void write_slot(TileRecord& out, int32_t line, int32_t slot, int32_t place,
                           int32_t slots, int32_t k_tiles) {
  out.slot[place] = slot;
  if (place == 0) {
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
  Geometry const& g = args.geometry;
#pragma unroll 1
  for (int32_t line = threadIdx.x; line < g.grid.lines; line += kThreads) {
    uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
    int32_t whole = 0;
    int32_t rests = 0;
#pragma unroll 1
    for (int32_t first = 0; first < g.grid.slots; first += g.slots_per_class) {
      int32_t const last = min(first + g.slots_per_class, g.grid.slots);
      int32_t const live = g.slot_bits.count(d_line, first, last);
      whole += whole_tiles(live, g.grid.slots_per_tile);
      rests += rest_slots(live, g.grid.slots_per_tile) != 0;
    }
    scratch.whole[line] = whole;
    scratch.rests[line] = rests;
  }
  __syncthreads();
}

// A warp makes tiles of the live slots of the line at `position`.
__device__ void write_line(Arguments const& args, Scratch const& scratch, Records const& records,
                           int32_t position) {
  Geometry const& g = args.geometry;
  int32_t const per_tile = g.grid.slots_per_tile;
  int32_t const line = scratch.order[position];
  uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
  int32_t whole_before = 0;  // in the classes before
  int32_t rests_before = 0;
#pragma unroll 1
  for (int32_t first = 0; first < g.grid.slots; first += g.slots_per_class) {
    int32_t const last = min(first + g.slots_per_class, g.grid.slots);
    int32_t const live_in_class = g.slot_bits.count(d_line, first, last);
    int32_t const whole = whole_tiles(live_in_class, per_tile);
    int32_t const rest = rest_slots(live_in_class, per_tile);
#pragma unroll 1
    for (int32_t slot = first + lane_id(); slot < last; slot += kWarp) {
      if (!g.slot_bits.is_live(d_line, slot)) {
        continue;
      }
      int32_t const rank = g.slot_bits.count(d_line, first, slot);
      int32_t const k_tiles = count_k_tiles(args, scratch, line, slot);
      int32_t const tile_of_class = whole_tiles(rank, per_tile);
      int32_t const place = rest_slots(rank, per_tile);
      if (tile_of_class == whole) {
        int32_t const before = scratch.rests[line] + rests_before;
        write_slot(args.list.records[records.first_rest() + before], line, slot, place, rest,
                   k_tiles);
      } else {
        int32_t const tile = record_index(scratch.order, scratch.whole, scratch.start, g.grid.lines,
                                          g.grid.shift, position, whole_before + tile_of_class);
        bool const is_kept = tile < records.kept_whole;
        write_slot(args.list.records[records.index_of(tile, place)], line, slot,
                   is_kept ? place : 0, is_kept ? per_tile : 1, k_tiles);
      }
    }
    whole_before += whole;
    rests_before += rest != 0;
  }
}

__device__ int32_t write_by_mask(Arguments const& args, Scratch const& scratch) {
  FullGrid const& grid = args.geometry.grid;
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
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  __shared__ int32_t fast_scratch[kScratchValues * kFastLines];
  int32_t const lines = args.geometry.grid.lines;
  Scratch const scratch(lines <= kFastLines ? fast_scratch : args.list.scratch, lines);
  order_lines(args, scratch);
  int32_t const count = args.request.d.words == nullptr ? write_all_live(args, scratch)
                                                        : write_by_mask(args, scratch);
  if (threadIdx.x == 0) {
    *args.list.header = TileListHeader{count, args.request.ctas.value()};
  }
}

}  // namespace

FullGrid full_grid(int64_t m, int64_t n, int64_t k, Tile tile, int32_t b_block_n) {
  auto const lines = int32_t(ceil_div(m, tile.m));
  return FullGrid(lines, int32_t(ceil_div(n, tile.slot_n)), tile.n / tile.slot_n,
                  b_block_n / tile.slot_n, int32_t(ceil_div(k, tile.k)),
                  group_shift(lines, tile.n, kElementBytes * n * k));
}

// Every record has a slot of its own.
int64_t max_records(int64_t m, int64_t n, Tile tile) {
  return ceil_div(m, tile.m) * ceil_div(n, tile.slot_n);
}

TileList lay_out(void* workspace, TileListRequest const& request) {
  Tile const& tile = request.tile;
  Carver carver(workspace);
  TileList list{};
  list.header = carver.take<TileListHeader>(1);
  list.records = carver.take<TileRecord>(max_records(request.m, request.n, tile));
  list.scratch = carver.take<int32_t>(kScratchValues * ceil_div(request.m, tile.m));
  list.bytes = carver.used();
  return list;
}

cudaError_t make_tile_list(TileListRequest const& request, TileList const& list,
                           cudaStream_t stream) {
  Tile const& tile = request.tile;
  FullGrid const grid = full_grid(request.m, request.n, request.k, tile, block_of(request.b));
  int32_t const slots_per_class = grid.slots_per_list > 0 ? grid.slots_per_list : grid.slots;
  Geometry const geometry{grid, slots_per_class, SlotBits::of(tile.slot_n, kMaskUnit)};
  return launch_overlapped(tile_list_kernel, {1, kThreads, 0, stream},
                           Arguments{geometry, request, list});
}

}  // namespace sparsedrop
