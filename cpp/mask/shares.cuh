// Cuts the first tiles of a list into pieces, so that every CTA gets the same amount of work.
//
// A list of n tiles on c CTAs has a last wave that keeps few of them busy, and with one or two
// waves tiles of unequal length leave CTAs idle. Here the first c to 2 c tiles (all of them, if
// there are fewer) are dealt out as equal shares of their K tiles; what is left is a whole number
// of waves. The cuts depend on the masks alone, so results repeat bit for bit.

#pragma once

#include "mask/tile_list.hpp"
#include "mask/tile_order.hpp"

namespace sparsedrop {

struct Shares {
  Cut cuts[kMaxShares + 1];         // share i is between cuts i and i + 1
  int32_t weights[2 * kMaxShares];  // of the tiles before
};

// Tiles that are dealt out, of `count` live ones.
__device__ inline int32_t tiles_dealt(int32_t count, TileListRequest const& request) {
  int32_t const ctas = request.ctas;
  int32_t const waves = count / ctas;
  int32_t const in_last_wave = count % ctas;
  bool const equal_tiles = request.a.words == nullptr && request.b.words == nullptr;
  // Tiles of one length with a last wave that is nearly full, or none, are best left alone.
  if (equal_tiles && (in_last_wave == 0 || in_last_wave > ctas - ctas / 8)) {
    return 0;
  }
  return waves < 2 ? count : in_last_wave + ctas;
}

__device__ inline int32_t slots_of(TileRecord const& record) {
  return record.slot[1] == kNoSlot ? 1 : 2;
}

// The tile that holds weight `at`: the last one that starts at or before it.
__device__ inline int32_t tile_at(int32_t const* starts, int32_t count, int32_t at) {
  int32_t low = 0;
  int32_t high = count - 1;
#pragma unroll 1
  while (low < high) {
    int32_t const middle = (low + high + 1) / 2;
    if (starts[middle] <= at) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// One thread writes the pieces of one share. Piece (tile, share) has place tile + share: along the
// list, one of the two grows from each piece to the next.
__device__ inline void write_pieces(TileList const& list, Shares const& shares, int32_t share) {
  Cut const begin = shares.cuts[share];
  Cut const end = shares.cuts[share + 1];
  int32_t const past_last = end.k > 0 ? end.tile + 1 : end.tile;
#pragma unroll 1
  for (int32_t tile = begin.tile; tile < past_last; ++tile) {
    Piece piece;
    piece.tile = list.records[tile];
    int32_t const from = tile == begin.tile ? begin.k : 0;
    bool const leaves_rest = tile == end.tile;
    int32_t const to = leaves_rest ? end.k : piece.tile.k_tiles;
    piece.tile.k_tiles = to - from;
    piece.k_first = from;
    if (leaves_rest) {
      piece.partial = share;
    } else if (from > 0) {
      // The cuts inside this tile, back from this share's own: one partial before each.
      int32_t first = share;
      while (first > 1 && shares.cuts[first - 1].tile == tile && shares.cuts[first - 1].k > 0) {
        --first;
      }
      piece.add_first = first - 1;
      piece.add_count = share - first + 1;
    }
    list.pieces[tile + share] = piece;
  }
  list.ranges[share] = {begin.tile + share, past_last + share};
}

// Called by all threads of the one CTA that makes the list. `sum` is exclusive_sums().
template <class Sum>
__device__ int32_t deal_out(TileListRequest const& request, TileList const& list,
                            int32_t live_tiles, Sum sum) {
  __shared__ Shares shares;
  int32_t const dealt = tiles_dealt(live_tiles, request);
  int32_t const ctas = request.ctas;
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < dealt; i += blockDim.x) {
    TileRecord const record = list.records[i];
    shares.weights[i] = tile_weight(record.k_tiles, slots_of(record));
  }
  __syncthreads();
  int32_t const total = sum(dealt, shares.weights);
#pragma unroll 1
  for (int32_t i = threadIdx.x; i <= ctas; i += blockDim.x) {
    if (i == ctas || dealt == 0) {
      shares.cuts[i] = {dealt, 0};
    } else {
      auto const at = int32_t(int64_t(total) * i / ctas);
      int32_t const tile = tile_at(shares.weights, dealt, at);
      TileRecord const record = list.records[tile];
      shares.cuts[i] = cut_tile(tile, record.k_tiles, slots_of(record), at - shares.weights[tile]);
    }
  }
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < ctas * kConsumerWarpGroups; i += blockDim.x) {
    list.ready[i] = 0;
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < ctas; i += blockDim.x) {
    write_pieces(list, shares, i);
  }
  return dealt;
}

}  // namespace sparsedrop
