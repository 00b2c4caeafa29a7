// Tiles without a list. Where there are few lines of tiles, each CTA orders them for itself, in
// less time than a launch that writes a list takes, and deals itself every ctas-th tile.

#pragma once

#include "gemm/config.hpp"
#include "mask/slots.hpp"

namespace sparsedrop {

// Lines that fit the shared memory which the stages leave: one warp sums up their groups.
constexpr int32_t kMaxOwnLines = 256;
static_assert(kMaxOwnLines <= 32 * kLinesPerGroup, "one lane a group");

struct OwnOrder {
  // By line
  uint16_t live[kMaxOwnLines];  // K tiles of A
  // By position in the order: lines with the most live K tiles first
  uint16_t order[kMaxOwnLines];
  // With a mask on D, by position: tiles of live slots only, and whether a live slot is left over
  uint16_t whole[kMaxOwnLines];
  uint32_t left_over[kMaxOwnLines / 32];
  int32_t group_start[kMaxOwnLines / kLinesPerGroup + 1];

  // Whether a product can do without a list.
  static bool suits(Lines const& b_lines, Lines const& d_lines, FullGrid const& grid) {
    return grid.lines <= kMaxOwnLines && grid.k_tiles <= UINT16_MAX && grid.slots <= UINT16_MAX &&
           (b_lines.words == nullptr || d_lines.words == nullptr);
  }

  // By all threads of the CTA.
  CUTLASS_DEVICE void make(Lines const& a_lines, Lines const& d_lines, FullGrid const& grid,
                           int32_t tile_m, SlotBits slots) {
    order_lines(a_lines, grid, tile_m);
    if (d_lines.words != nullptr) {
      count_tiles(d_lines, grid, tile_m, slots);
    }
  }

  // By one thread: calls `take` with the records of one CTA, every ctas-th of all.
  template <class CountKTiles, class Take>
  CUTLASS_DEVICE void deal(Lines const& d_lines, FullGrid const& grid, int32_t tile_m,
                           SlotBits slots, CountKTiles count_k_tiles, Take take) const {
    bool const has_mask = d_lines.words != nullptr;
    auto const ctas = int32_t(gridDim.x);
    auto const cta = int32_t(blockIdx.x);
    int32_t const whole = has_mask ? group_start[32] : whole_tiles(grid);
    int32_t const kept_whole = tiles_kept_whole(whole, grid.slots_per_tile, ctas);
    int32_t const first_single = kept_whole + (whole - kept_whole) * grid.slots_per_tile;
    int32_t const count = first_single + (has_mask ? count_left_over() : singles_of(grid));
    for (int32_t wave = 0, index = cta; index < count; index = dealt_index(++wave, cta, ctas)) {
      TileRecord record{0, {kNoSlot, kNoSlot}, 0};
      if (has_mask) {
        record = masked_record(d_lines, grid, tile_m, slots, kept_whole, first_single, index);
      } else {
        Place const at = place_at(grid, kept_whole, index);
        record = {order[at.position], {at.slot[0], at.slot[1]}, 0};
      }
      record.k_tiles = count_k_tiles(record);
      take(record);
    }
  }

 private:
  // A line's position is the number of lines that come before it.
  CUTLASS_DEVICE void order_lines(Lines const& a_lines, FullGrid const& grid, int32_t tile_m) {
    for (int32_t line = threadIdx.x; line < grid.lines; line += blockDim.x) {
      live[line] = uint16_t(KTiles(a_lines.of(line * tile_m), nullptr, grid.k_tiles).count());
    }
    __syncthreads();
    for (int32_t line = threadIdx.x; line < grid.lines; line += blockDim.x) {
      int32_t const own = live[line];
      int32_t position = line;
      if (a_lines.words != nullptr) {
        position = 0;
        for (int32_t other = 0; other < grid.lines; ++other) {
          position += live[other] > own || (live[other] == own && other < line);
        }
      }
      order[position] = uint16_t(line);
    }
    __syncthreads();
  }

  CUTLASS_DEVICE int32_t count_left_over() const {
    int32_t count = 0;
    for (uint32_t word : left_over) {
      count += count_bits(word);
    }
    return count;
  }

  CUTLASS_DEVICE TileRecord masked_record(Lines const& d_lines, FullGrid const& grid,
                                          int32_t tile_m, SlotBits slots, int32_t kept_whole,
                                          int32_t first_single, int32_t index) const {
    bool const is_single = index >= first_single;
    bool const is_split = !is_single && index >= kept_whole;
    int32_t const after_kept = index - kept_whole;
    GroupPlace at{};
    if (is_single) {
      at.position = SlotBits{1, 0xffffffffu}.nth_live(left_over, index - first_single);
      at.tile = whole[at.position];
    } else {
      at = place_in_groups(is_split ? kept_whole + after_kept / grid.slots_per_tile : index,
                           grid.lines, whole, group_start);
    }
    int32_t const line = order[at.position];
    uint32_t const* d_line = d_lines.of(line * tile_m);
    int32_t const rank = at.tile * grid.slots_per_tile;
    if (is_single || is_split || grid.slots_per_tile == 1) {
      int32_t const place = is_split ? after_kept % grid.slots_per_tile : 0;
      return {line, {slots.nth_live(d_line, rank + place), kNoSlot}, 0};
    }
    return {line, {slots.nth_live(d_line, rank), slots.nth_live(d_line, rank + 1)}, 0};
  }

  CUTLASS_DEVICE void count_tiles(Lines const& d_lines, FullGrid const& grid, int32_t tile_m,
                                  SlotBits slots) {
    auto const position = int32_t(threadIdx.x);
    if (position < kMaxOwnLines) {
      int32_t live_slots = 0;
      if (position < grid.lines) {
        live_slots = slots.count(d_lines.of(order[position] * tile_m), 0, grid.slots);
      }
      whole[position] = uint16_t(live_slots / grid.slots_per_tile);
      unsigned const odd = __ballot_sync(0xffffffffu, live_slots % grid.slots_per_tile != 0);
      if (position % 32 == 0) {
        left_over[position / 32] = odd;
      }
    }
    __syncthreads();
    if (position < 32) {
      int32_t sum = 0;
      for (int32_t i = 0; i < kLinesPerGroup; ++i) {
        sum += whole[position * kLinesPerGroup + i];
      }
      for (int offset = 1; offset < 32; offset *= 2) {
        int32_t const lower = __shfl_up_sync(0xffffffffu, sum, offset);
        sum += position >= offset ? lower : 0;
      }
      group_start[position + 1] = sum;
      if (position == 0) {
        group_start[0] = 0;
      }
    }
    __syncthreads();
  }
};

}  // namespace sparsedrop
