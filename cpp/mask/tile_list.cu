// Masks -> the list of output tiles. One CTA: the grids are small, and one launch is cheaper than
// several that are each a little faster.
//
//   order    lines with the most live K tiles first, so that no long tile starts last
//   write    eight lines at a time, walking along n in step so that they share operands in L2; then
//            the dropped tiles, which cost a store only and fill the tail

#include "mask/tile_list.hpp"

#include "mask/shares.cuh"
#include "mask/tile_order.hpp"
#include "overlap.hpp"

namespace sparsedrop {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = kThreads;   // of K tile counts, one a thread
constexpr int kFastLines = 1024;  // as many keep their scratch values in shared memory
constexpr unsigned kAllLanes = 0xffffffffu;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Geometry {
  FullGrid grid;
  int32_t slots_per_class;  // neighbouring slots that share their list of K tiles
  int32_t units_per_slot;   // mask units
  uint32_t slot_bits;       // the first unit of each slot in a word of D's mask
};

struct Arguments {
  Geometry geometry;
  TileListRequest request;
  TileList list;
};

constexpr int kScratchValues = 6;

// One value of each kind for each line of tiles.
struct Scratch {
  int32_t* k_tiles;  // live ones in A's line
  int32_t* order;    // lines in the order in which they are written
  int32_t* start;    // whole tiles in the lines before, by position in `order`
  int32_t* whole;    // by line
  int32_t* partial;  // by line; then, in the lines before
  int32_t* dropped;  // by line; then, in the lines before

  __device__ Scratch(int32_t* base, int32_t lines)
      : k_tiles(base),
        order(base + lines),
        start(base + 2 * lines),
        whole(base + 3 * lines),
        partial(base + 4 * lines),
        dropped(base + 5 * lines) {}
};

// A kernel this short is bound by fetching its instructions: loops stay loops, and what is used
// twice is a function.

__device__ int lane_id() { return threadIdx.x % kWarp; }
__device__ int warp_id() { return threadIdx.x / kWarp; }

__device__ int32_t inclusive_sum_in_warp(int32_t value) {
#pragma unroll 1
  for (int offset = 1; offset < kWarp; offset *= 2) {
    int32_t const lower = __shfl_up_sync(kAllLanes, value, offset);
    value += lane_id() >= offset ? lower : 0;
  }
  return value;
}

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

// The record of one slot of a whole tile; the first slot writes it where the tile stays whole.
__device__ void write_slot(Arguments const& args, TileRecord const& record, int32_t tile,
                           int32_t kept_whole, int32_t place) {
  TileRecord* records = args.list.records;
  if (tile >= kept_whole) {
    int32_t const per_tile = args.geometry.grid.slots_per_tile;
    records[kept_whole + (tile - kept_whole) * per_tile + place] = record;
  } else {
    if (place == 0) {
      records[tile] = record;
    }
    __syncwarp(__activemask());
    if (place != 0) {
      records[tile].slot[place] = record.slot[0];
    }
  }
}

// Split products have better means against a bad last wave.
__device__ int32_t kept_whole_of(int32_t whole, Arguments const& args) {
  return args.request.split
             ? whole
             : tiles_kept_whole(whole, args.geometry.grid.slots_per_tile, args.request.ctas);
}

// Records in the list: the live ones come first.
struct Totals {
  int32_t live;
  int32_t dropped;
};

// Without a mask on D one thread writes each record.
__device__ Totals write_all_live(Arguments const& args, Scratch const& scratch) {
  FullGrid const& grid = args.geometry.grid;
  int32_t const kept_whole = kept_whole_of(whole_tiles(grid), args);
  int32_t const count = records_of(grid, kept_whole);
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < count; i += kThreads) {
    Place const at = place_at(grid, kept_whole, i);
    int32_t const line = scratch.order[at.position];
    args.list.records[i] = {
        line, {at.slot[0], at.slot[1]}, count_k_tiles(args, scratch, line, at.slot[0])};
  }
  return {count, 0};
}

// Live slots of D's line among [first, last).
__device__ int32_t count_live(uint32_t const* d_line, int32_t first, int32_t last,
                              Geometry const& g) {
  int32_t const begin = first * g.units_per_slot;
  int32_t const end = last * g.units_per_slot;
  int32_t live = 0;
#pragma unroll 1
  for (int32_t w = begin / 32; 32 * w < end; ++w) {
    uint32_t const before = tiles_in_word(begin, w);
    live += __popc(d_line[w] & tiles_in_word(end, w) & ~before & g.slot_bits);
  }
  return live;
}

// Tiles of each kind that `live` slots and `dropped` ones make.
struct Counts {
  int32_t whole = 0;    // every slot live
  int32_t partial = 0;  // live slots without a partner
  int32_t dropped = 0;  // slots to be written as zeros

  __device__ void add(int32_t live_slots, int32_t dropped_slots, int32_t per_tile) {
    whole += live_slots / per_tile;
    partial += live_slots % per_tile != 0;
    dropped += (dropped_slots + per_tile - 1) / per_tile;
  }
};

__device__ void count_by_mask(Arguments const& args, Scratch const& scratch) {
  Geometry const& g = args.geometry;
#pragma unroll 1
  for (int32_t line = threadIdx.x; line < g.grid.lines; line += kThreads) {
    uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
    Counts counts;
#pragma unroll 1
    for (int32_t first = 0; first < g.grid.slots; first += g.slots_per_class) {
      int32_t const last = min(first + g.slots_per_class, g.grid.slots);
      int32_t const live = count_live(d_line, first, last, g);
      counts.add(live, last - first - live, g.grid.slots_per_tile);
    }
    scratch.whole[line] = counts.whole;
    scratch.partial[line] = counts.partial;
    scratch.dropped[line] = counts.dropped;
  }
  __syncthreads();
}

// Records before which the tiles of each kind are listed.
struct Firsts {
  int32_t partial;
  int32_t dropped;
  int32_t kept_whole;
};

// A warp pairs up the live slots, and the dropped ones, of the line at `position`.
__device__ void write_line(Arguments const& args, Scratch const& scratch, Firsts const& firsts,
                           int32_t position) {
  Geometry const& g = args.geometry;
  int32_t const per_tile = g.grid.slots_per_tile;
  int32_t const line = scratch.order[position];
  uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
  Counts before;  // of the classes before
#pragma unroll 1
  for (int32_t first = 0; first < g.grid.slots; first += g.slots_per_class) {
    int32_t const last = min(first + g.slots_per_class, g.grid.slots);
    int32_t const live_in_class = count_live(d_line, first, last, g);
    int32_t const live_in_whole = live_in_class / per_tile * per_tile;
#pragma unroll 1
    for (int32_t slot = first + lane_id(); slot < last; slot += kWarp) {
      int32_t const live_rank = count_live(d_line, first, slot, g);
      bool const live = count_live(d_line, slot, slot + 1, g) != 0;
      TileRecord record{line, {slot, kNoSlot}, kDropped};
      if (live) {
        record.k_tiles = count_k_tiles(args, scratch, line, slot);
      }
      if (live && live_rank >= live_in_whole) {
        args.list.records[firsts.partial + scratch.partial[line] + before.partial] = record;
        continue;
      }
      // Dropped tiles are never split: for them every tile is kept whole.
      int32_t const rank = live ? live_rank : slot - first - live_rank;
      int32_t const tile = (live ? before.whole : before.dropped) + rank / per_tile;
      int32_t const index = live ? record_index(scratch.order, scratch.whole, scratch.start,
                                                g.grid.lines, position, tile)
                                 : firsts.dropped + scratch.dropped[line] + tile;
      write_slot(args, record, index, live ? firsts.kept_whole : INT32_MAX, rank % per_tile);
    }
    before.add(live_in_class, last - first - live_in_class, per_tile);
  }
}

__device__ Totals write_by_mask(Arguments const& args, Scratch const& scratch) {
  Geometry const& g = args.geometry;
  count_by_mask(args, scratch);
  int32_t const whole = exclusive_sums(g.grid.lines, scratch.start, scratch.whole, scratch.order);
  int32_t const partial = exclusive_sums(g.grid.lines, scratch.partial, scratch.partial, nullptr);
  int32_t const dropped = exclusive_sums(g.grid.lines, scratch.dropped, scratch.dropped, nullptr);
  int32_t const kept_whole = kept_whole_of(whole, args);
  int32_t const first_partial = kept_whole + (whole - kept_whole) * g.grid.slots_per_tile;
  Firsts const firsts{first_partial, first_partial + partial, kept_whole};
#pragma unroll 1
  for (int32_t position = warp_id(); position < g.grid.lines; position += kWarps) {
    write_line(args, scratch, firsts, position);
  }
  return {firsts.dropped, dropped};
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
  Totals const totals = args.request.d.words == nullptr ? write_all_live(args, scratch)
                                                        : write_by_mask(args, scratch);
  int32_t dealt = 0;
  if (args.request.split) {
    __syncthreads();
    dealt = deal_out(args.request, args.list, totals.live, [](int32_t count, int32_t* values) {
      return exclusive_sums(count, values, values, nullptr);
    });
  }
  if (threadIdx.x == 0) {
    *args.list.header =
        TileListHeader{dealt, totals.live + totals.dropped, dealt + args.request.ctas};
  }
}

// Hands out aligned pieces of a workspace; null workspaces only measure.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* const here = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (sizeof(T) * size_t(count) + 15) / 16 * 16;
    return here;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace

FullGrid full_grid(int64_t m, int64_t n, int64_t k, Tile tile) {
  return {int32_t(ceil_div(m, tile.m)), int32_t(ceil_div(n, tile.slot_n)), tile.n / tile.slot_n,
          int32_t(ceil_div(k, tile.k))};
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
  if (request.split) {
    int64_t const ctas = request.ctas;
    list.pieces = carver.take<Piece>(3 * ctas);  // below 2 c tiles in c shares
    list.ranges = carver.take<PieceRange>(ctas);
    list.ready = carver.take<int32_t>(ctas * kConsumerWarpGroups);
    list.partials = carver.take<float>(ctas * tile.m * tile.n);
  }
  list.bytes = carver.used();
  return list;
}

cudaError_t make_tile_list(TileListRequest const& request, TileList const& list,
                           cudaStream_t stream) {
  Tile const& tile = request.tile;
  FullGrid const grid = full_grid(request.m, request.n, request.k, tile);
  int32_t const slots_per_class = request.b.words ? request.b.block / tile.slot_n : grid.slots;
  Geometry const geometry{grid, slots_per_class, tile.slot_n / kMaskUnit,
                          tile.slot_n == kMaskUnit ? 0xffffffffu : 0x55555555u};
  return launch_overlapped(tile_list_kernel, {1, kThreads, 0, stream},
                           Arguments{geometry, request, list});
}

}  // namespace sparsedrop
