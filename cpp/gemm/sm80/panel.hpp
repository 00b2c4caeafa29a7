// Where the elements of a stage lie in shared memory: pure functions, which the tests walk through
// on the host.
//
// A panel is what belongs together of an operand: A's rows of a tile, or one slot of B. It lies in
// lines of 128 bytes, 16-byte chunks whose order differs from line to line: all threads that read
// or write at the same time meet different banks.

#pragma once

#include "gemm/sm80/config.hpp"

namespace sparsedrop::sm80 {

constexpr int kChunkBytes = 16;
constexpr int kLineChunks = kLineBytes / kChunkBytes;

// Rows run along m or n. In memory, a line runs along the contiguous extent: along k where that is
// k-major, else along the rows, which are then cut into columns of 128 bytes.
template <class E, bool KMajor, int Rows>
struct Panel {
  using Element = E;
  static constexpr bool kKMajor = KMajor;
  static constexpr int kVector = kChunkBytes / int(sizeof(Element));
  static constexpr int kDepth = kLineBytes / int(sizeof(Element));
  static constexpr int kLines = kKMajor ? Rows : kDepth;
  static constexpr int kChunks = (kKMajor ? kDepth : Rows) / kVector;  // of a line in memory
  static constexpr int kColumnBytes = kLines * kLineBytes;
  static constexpr int kBytes = kChunks / kLineChunks * kColumnBytes;
  static_assert(kChunks % kLineChunks == 0, "lines of shared memory are full");

  // ldmatrix transposes 16-bit elements only.
  static constexpr bool kByMatrix = kKMajor || sizeof(Element) == 2;

  // ldmatrix reads the same chunk of eight lines. Without it, a warp reads eight elements, two
  // chunks, of four lines.
  SPARSEDROP_HOST_DEVICE static constexpr int swizzle(int line) {
    return kByMatrix ? line % 8 : line % 4 * 2;
  }

  SPARSEDROP_HOST_DEVICE static constexpr int offset(int line, int chunk) {
    return chunk / kLineChunks * kColumnBytes + line * kLineBytes +
           ((chunk % kLineChunks) ^ swizzle(line)) * kChunkBytes;
  }
};

// Which chunks of a panel each of the CTA's threads copies: one chunk of every kLineStep-th line.
template <class Panel, int kThreads>
struct PanelShare {
  static constexpr int kLineStep = kThreads / Panel::kChunks;
  static constexpr int kCopies = Panel::kLines / kLineStep;
  static constexpr int kStepBytes = kLineStep * kLineBytes;
  static_assert(kLineStep * Panel::kChunks == kThreads && kCopies * kLineStep == Panel::kLines,
                "threads share a panel evenly");
  static_assert(kLineStep % (Panel::kByMatrix ? 8 : 4) == 0, "a thread's lines are swizzled alike");

  SPARSEDROP_HOST_DEVICE static constexpr int line(int thread) { return thread / Panel::kChunks; }
  SPARSEDROP_HOST_DEVICE static constexpr int chunk(int thread) { return thread % Panel::kChunks; }
  SPARSEDROP_HOST_DEVICE static constexpr int offset(int thread) {
    return Panel::offset(line(thread), chunk(thread));
  }
};

enum class Role { a, b };

// Which bytes each lane of a warp reads. A fragment is 16 rows by one k step, 32 bytes of k: four
// registers of each lane, as mma.sync takes them. In the order of registers those are
//
//   A   rows 0-7, rows 8-15 of the first half of k, then of the second
//   B   both halves of k of rows 0-7, then of rows 8-15: two fragments of mma.sync
//
// Of a register, lane l holds row l / 4, word l % 4 of the 16 bytes of k.
template <class Panel, Role kRole>
struct Fragment {
  static constexpr int kRows = 16;
  static constexpr int kStepBytes = 32;
  static constexpr int kSteps = kLineBytes / kStepBytes;
  static constexpr int kStepDepth = Panel::kDepth / kSteps;  // elements

  SPARSEDROP_HOST_DEVICE static constexpr int row_half(int reg) {
    return kRole == Role::a ? reg % 2 : reg / 2;
  }
  SPARSEDROP_HOST_DEVICE static constexpr int k_half(int reg) {
    return kRole == Role::a ? reg / 2 : reg % 2;
  }

  // Of a warp whose rows begin at `row`: the part of its addresses that depends on the lane. With
  // ldmatrix, lanes 8 r to 8 r + 7 name the lines of register r.
  SPARSEDROP_HOST_DEVICE static constexpr int lane_offset(int row, int lane) {
    if (Panel::kByMatrix) {
      int const in_row = 8 * row_half(lane / 8) + (Panel::kKMajor ? lane % 8 : 0);
      int const in_k = k_half(lane / 8);
      return Panel::kKMajor ? Panel::offset(row + in_row, in_k)
                            : Panel::offset(8 * in_k + lane % 8, (row + in_row) / Panel::kVector);
    }
    int const in_row = row + lane / 4;
    return Panel::offset(lane % 4, in_row / Panel::kVector) +
           in_row % Panel::kVector * int(sizeof(typename Panel::Element));
  }

  // The address of fragment `i` of a warp at k step `step`, from that of fragment 0 at step 0: two
  // chunks further in a line are an xor, since warps begin at even ones and stay within theirs.
  SPARSEDROP_HOST_DEVICE static constexpr uint32_t matrix(uint32_t first, int i, int step) {
    if (Panel::kKMajor) {
      return (first ^ uint32_t(step * kStepBytes)) + uint32_t(i * kRows * kLineBytes);
    }
    constexpr int kInLine = kLineBytes / kStepBytes;
    return (first ^ uint32_t(i % kInLine * kStepBytes)) +
           uint32_t(i / kInLine * Panel::kColumnBytes + step * kStepDepth * kLineBytes);
  }

  // The address of one register of a fragment, where there is no ldmatrix.
  SPARSEDROP_HOST_DEVICE static constexpr uint32_t word(uint32_t first, int i, int step, int reg) {
    constexpr int kInLine = kLineBytes / kStepBytes;
    int const eight = 2 * i + row_half(reg);  // rows
    int const line = step * kStepDepth + k_half(reg) * kStepDepth / 2;
    return (first ^ uint32_t(eight % kInLine * kStepBytes)) +
           uint32_t(eight / kInLine * Panel::kColumnBytes + line * kLineBytes);
  }
};

}  // namespace sparsedrop::sm80
