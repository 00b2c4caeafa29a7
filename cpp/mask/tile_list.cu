// Masks -> the list of output tiles. One CTA: the grids are small, and one launch is cheaper than
// several that are each a little faster.
//
//   order    lines with the most live K tiles first, so that no long tile starts last
//   write    eight lines at a time, walking along n in step so that they share operands in L2; then
//            the dropped tiles, which cost a store only and fill the tail

#include "mask/tile_list.hpp"

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
  int32_t lines;            // of tiles along m
  int32_t slots;            // along n
  int32_t slots_per_tile;   // 1 or 2
  int32_t slots_per_class;  // neighbouring slots that share their list of K tiles
  int32_t units_per_slot;   // mask units
  uint32_t slot_bits;       // the first unit of each slot in a word of D's mask
  int32_t k_tiles;
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
  for (int32_t line = threadIdx.x; line < g.lines; line += kThreads) {
    uint32_t const* a_line = args.request.a.of(line * args.request.tile.m);
    int32_t const count = KTiles(a_line, nullptr, g.k_tiles).count();
    scratch.k_tiles[line] = count;
    if (sorts) {
      atomicAdd(&bins[order_bin(count, g.k_tiles, kBins)], 1);
    } else {
      scratch.order[line] = line;
    }
  }
  __syncthreads();
  if (sorts) {
    exclusive_sums(kBins, bins, bins, nullptr);
#pragma unroll 1
    for (int32_t line = threadIdx.x; line < g.lines; line += kThreads) {
      int32_t const bin = order_bin(scratch.k_tiles[line], g.k_tiles, kBins);
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
                args.geometry.k_tiles)
      .count();
}

// Whole tiles that are given out whole. The others would be a last wave that leaves more than half
// of the CTAs idle: given out slot by slot, it takes half the time.
__device__ int32_t tiles_kept_whole(int32_t whole, Arguments const& args) {
  int32_t const in_last_wave = whole % args.request.ctas;
  bool const splits = args.geometry.slots_per_tile > 1 && in_last_wave <= args.request.ctas / 2;
  return splits ? whole - in_last_wave : whole;
}

// The record of one slot of a whole tile; the first slot writes it where the tile stays whole.
__device__ void write_slot(Arguments const& args, TileRecord const& record, int32_t tile,
                           int32_t kept_whole, int32_t place) {
  TileRecord* records = args.list.records;
  if (tile >= kept_whole) {
    int32_t const per_tile = args.geometry.slots_per_tile;
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

// Without a mask on D every line has the same tiles: one thread writes each slot.
__device__ int32_t write_all_live(Arguments const& args, Scratch const& scratch) {
  Geometry const& g = args.geometry;
  int32_t const per_line = g.slots / g.slots_per_tile;
  int32_t const whole = g.lines * per_line;
  int32_t const kept_whole = tiles_kept_whole(whole, args);
  int32_t const of_whole = whole * g.slots_per_tile;
  int32_t const first_single = kept_whole + (whole - kept_whole) * g.slots_per_tile;
  // With an odd number of slots the last one of each line has no partner.
  int32_t const singles = g.slots % g.slots_per_tile == 0 ? 0 : g.lines;
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < of_whole + singles; i += kThreads) {
    bool const single = i >= of_whole;
    int32_t const tile = i / g.slots_per_tile;
    int32_t const place = single ? 0 : i % g.slots_per_tile;
    GroupPlace const at =
        single ? GroupPlace{i - of_whole, per_line} : place_in_groups(tile, g.lines, per_line);
    int32_t const line = scratch.order[at.position];
    int32_t const slot = at.tile * g.slots_per_tile + place;
    TileRecord const record{line, {slot, kNoSlot}, count_k_tiles(args, scratch, line, slot)};
    if (single) {
      args.list.records[first_single + i - of_whole] = record;
    } else {
      write_slot(args, record, tile, kept_whole, place);
    }
  }
  return first_single + singles;
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
  for (int32_t line = threadIdx.x; line < g.lines; line += kThreads) {
    uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
    Counts counts;
#pragma unroll 1
    for (int32_t first = 0; first < g.slots; first += g.slots_per_class) {
      int32_t const last = min(first + g.slots_per_class, g.slots);
      int32_t const live = count_live(d_line, first, last, g);
      counts.add(live, last - first - live, g.slots_per_tile);
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
  int32_t const per_tile = g.slots_per_tile;
  int32_t const line = scratch.order[position];
  uint32_t const* d_line = args.request.d.of(line * args.request.tile.m);
  Counts before;  // of the classes before
#pragma unroll 1
  for (int32_t first = 0; first < g.slots; first += g.slots_per_class) {
    int32_t const last = min(first + g.slots_per_class, g.slots);
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
      int32_t const index =
          live ? record_index(scratch.order, scratch.whole, scratch.start, g.lines, position, tile)
               : firsts.dropped + scratch.dropped[line] + tile;
      write_slot(args, record, index, live ? firsts.kept_whole : INT32_MAX, rank % per_tile);
    }
    before.add(live_in_class, last - first - live_in_class, per_tile);
  }
}

__device__ int32_t write_by_mask(Arguments const& args, Scratch const& scratch) {
  Geometry const& g = args.geometry;
  count_by_mask(args, scratch);
  int32_t const whole = exclusive_sums(g.lines, scratch.start, scratch.whole, scratch.order);
  int32_t const partial = exclusive_sums(g.lines, scratch.partial, scratch.partial, nullptr);
  int32_t const dropped = exclusive_sums(g.lines, scratch.dropped, scratch.dropped, nullptr);
  int32_t const kept_whole = tiles_kept_whole(whole, args);
  int32_t const first_partial = kept_whole + (whole - kept_whole) * g.slots_per_tile;
  Firsts const firsts{first_partial, first_partial + partial, kept_whole};
#pragma unroll 1
  for (int32_t position = warp_id(); position < g.lines; position += kWarps) {
    write_line(args, scratch, firsts, position);
  }
  return firsts.dropped + dropped;
}

__global__ void __launch_bounds__(kThreads) tile_list_kernel(Arguments const args) {
  // The masks, and what last used the workspace, are ready from here on; the product behind this
  // launch may start, and waits for this grid's end in turn.
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  __shared__ int32_t fast_scratch[kScratchValues * kFastLines];
  int32_t const lines = args.geometry.lines;
  Scratch const scratch(lines <= kFastLines ? fast_scratch : args.list.scratch, lines);
  order_lines(args, scratch);
  int32_t const count = args.request.d.words == nullptr ? write_all_live(args, scratch)
                                                        : write_by_mask(args, scratch);
  if (threadIdx.x == 0) {
    *args.list.header = TileListHeader{count, args.request.ctas};
  }
}

}  // namespace

// Every record has a slot of its own.
int64_t max_records(int64_t m, int64_t n, Tile tile) {
  return ceil_div(m, tile.m) * ceil_div(n, tile.slot_n);
}

size_t tile_list_bytes(int64_t m, int64_t n, Tile tile) {
  size_t const scratch = kScratchValues * sizeof(int32_t) * size_t(ceil_div(m, tile.m));
  return sizeof(TileListHeader) + sizeof(TileRecord) * size_t(max_records(m, n, tile)) + scratch;
}

TileList tile_list_at(void* workspace, int64_t m, int64_t n, Tile tile) {
  auto* header = static_cast<TileListHeader*>(workspace);
  auto* records = reinterpret_cast<TileRecord*>(header + 1);
  return {header, records, reinterpret_cast<int32_t*>(records + max_records(m, n, tile))};
}

cudaError_t make_tile_list(TileListRequest const& request, TileList list, cudaStream_t stream) {
  Tile const& tile = request.tile;
  int64_t const slots = ceil_div(request.n, tile.slot_n);
  int64_t const slots_per_class = request.b.words ? request.b.block / tile.slot_n : slots;
  Geometry const geometry{int32_t(ceil_div(request.m, tile.m)),
                          int32_t(slots),
                          tile.n / tile.slot_n,
                          int32_t(slots_per_class),
                          tile.slot_n / kMaskUnit,
                          tile.slot_n == kMaskUnit ? 0xffffffffu : 0x55555555u,
                          int32_t(ceil_div(request.k, tile.k))};
  return launch_overlapped(tile_list_kernel, {1, kThreads, 0, stream},
                           Arguments{geometry, request, list});
}

}  // namespace sparsedrop
