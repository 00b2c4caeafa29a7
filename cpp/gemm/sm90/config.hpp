// What is compiled in, and every type that follows from it.

#pragma once

#include "gemm/sm90/driver.hpp"

#include <cute/tensor.hpp>

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>
#include <cutlass/version.h>
#include <cutlass/gemm/collective/builders/sm90_common.inl>
#include <cutlass/pipeline/sm90_pipeline.hpp>

#include "schedule/tile_record.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop::sm90 {

// Before 4.2, PipelineTmaAsync counted consumers in warp groups and not one by one.
static_assert(CUTLASS_VERSION >= 420, "CUTLASS 4.2 or later is needed");

using cute::GMMA::Major;

// bf16 and fp16: of other types wgmma takes K-major operands only.
constexpr int kElementBytes = 2;

// Beyond, there are tiles enough, and their sums would fill 256 MB.
constexpr Limits kLimits{/*max_split_k=*/8, /*max_split_n=*/128, /*max_split_slots=*/8192};

constexpr bool kOverlaps = true;  // see common/overlap.hpp

// Two warp groups multiply, 64 rows each, one wgmma instruction high: the halves of a tile of 128
// rows, or the two slots of a tile of 64 rows.
constexpr int kConsumerWarpGroups = 2;
constexpr int kWarpGroupRows = 64;

// The shared memory that a CTA may have, and what barriers and the order of tiles take of it.
constexpr int kSharedBytes = 227 * 1024;
constexpr int kReservedBytes = 3 * 1024;

template <int M, int N, int SlotN, int Stages>
struct TileConfig {
  static constexpr int kM = M;
  static constexpr int kN = N;
  static constexpr int kK = kMaskUnit;  // one mask bit is one K tile
  static constexpr int kSlotN = SlotN;
  static constexpr int kSlots = N / SlotN;
  static constexpr int kStages = Stages;
  static constexpr Tile kTile{kM, kN, kK, kSlotN, Architecture::sm90};

  // Squares of 64x64 in which a warp group stores a tile: one is filled while one is stored, where
  // there is room.
  static constexpr int kStageBytes = kElementBytes * (kM + kN) * kK;
  static constexpr int kSquareBytes = kElementBytes * kWarpGroupRows * kWarpGroupRows;
  static constexpr int kStoreBuffers =
      kStages * kStageBytes + 2 * kConsumerWarpGroups * kSquareBytes + kReservedBytes <=
              kSharedBytes
          ? 2
          : 1;

  // What one warp group multiplies of a tile.
  static constexpr int kRowGroups = kM / kWarpGroupRows;
  static constexpr int kWarpGroupSlots = kSlots * kRowGroups / kConsumerWarpGroups;
  static constexpr int kWarpGroupN = kWarpGroupSlots * kSlotN;
  static_assert(kRowGroups * kWarpGroupRows == kM &&
                    kWarpGroupSlots * kConsumerWarpGroups == kSlots * kRowGroups,
                "the warp groups share a tile evenly");
  static_assert(kWarpGroupSlots == kSlots || kSlots == 2,
                "Ordering::only_tile() gives a CTA one slot or two that are multiplied at once");
  static constexpr bool kHasParallelSlots = kWarpGroupSlots < kSlots;

  static constexpr int kWarpGroupSums = kWarpGroupRows * kWarpGroupN;  // accumulators
  static constexpr bool kCanSplit = kN <= kLimits.max_split_n;

  SPARSEDROP_HOST_DEVICE static int row_group(int warp_group) {
    return kRowGroups == 1 ? 0 : warp_group;
  }
  SPARSEDROP_HOST_DEVICE static int first_slot(int warp_group) {
    return kWarpGroupSlots == kSlots ? 0 : warp_group;
  }
  // Registers have no index at run time: `s` is a constant, `warp_group` is not.
  SPARSEDROP_HOST_DEVICE static int32_t slot_of(TileRecord const& record, int warp_group, int s) {
    if constexpr (kWarpGroupSlots == kSlots) {
      return record.slot[s];
    } else {
      return warp_group == 0 ? record.slot[s] : record.slot[kWarpGroupSlots + s];
    }
  }

  static_assert(kSlots * SlotN == N && kSlots <= kMaxSlots,
                "a tile record has room for three slots");
  static_assert(SlotN == kMaskUnit || SlotN == 2 * kMaskUnit, "SlotBits reads slots of 64 or 128");
};

// The support matrix, in the order of tile ids. Stages of 48, 32, 24 and 40 KB fill the 227 KB of
// shared memory, less 16 or 32 KB for the epilogue: there is no room for more.
using TileConfigs = cute::tuple<TileConfig<128, 256, 128, 4>,  //
                                TileConfig<128, 128, 64, 6>,   //
                                TileConfig<64, 128, 64, 8>,    //
                                TileConfig<128, 192, 64, 5>>;

// Majors of the operands as the kernel sees them, after any swap. D is "K-major" where n is
// contiguous, which is when the problem is not swapped.
template <Major A, Major B, Major D>
struct Layouts {
  static constexpr Major kA = A;
  static constexpr Major kB = B;
  static constexpr Major kD = D;
  // Weight gradients, which alone are wanted in fp32: dW = dYᵀ X, as either of them is stored.
  static constexpr bool kMayBeWide = A == Major::MN && B == Major::MN;
};

// What few products need is in kernels of its own: the code of an activation is ten times that of a
// K loop, and a product that only jumps over it waits for instructions at every tile. A wide
// product writes D in fp32.
enum class Variant { plain, activates, split_k, wide, wide_split_k };

template <class E, class C, class L, Variant kVariant>
struct Traits {
  using Element = E;
  using Config = C;
  using Layouts = L;
  static constexpr bool kActivates = kVariant == Variant::activates;
  static constexpr bool kSplits = kVariant == Variant::split_k || kVariant == Variant::wide_split_k;
  static constexpr bool kIsWide = kVariant == Variant::wide || kVariant == Variant::wide_split_k;
  static_assert(!kIsWide || Layouts::kMayBeWide, "D in fp32 is compiled for weight gradients only");

  static constexpr int kThreads = (kConsumerWarpGroups + 1) * cutlass::NumThreadsPerWarpGroup;

  using TileM = cute::Int<Config::kM>;
  using TileN = cute::Int<Config::kN>;
  using TileK = cute::Int<Config::kK>;
  using SlotN = cute::Int<Config::kSlotN>;
  using Slots = cute::Int<Config::kSlots>;
  using Stages = cute::Int<Config::kStages>;

  template <class Columns>
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, cute::Shape<TileM, Columns, TileK>,
                                 Layouts::kA, Layouts::kB>(),
      cute::Layout<cute::Shape<cute::Int<Config::kRowGroups>, cute::_1, cute::_1>>{}));
  using WarpGroupN = cute::Int<Config::kWarpGroupN>;
  using WarpGroupMma = Mma<WarpGroupN>;
  // Where a tile has fewer slots than it could have, and they are not shared out
  using RestN = cute::Int<(Config::kSlots - 1) * Config::kSlotN>;
  using RestMma = Mma<RestN>;

  // Element (row, k, stage) of an operand's tiles in shared memory. MN-major atoms are stacked
  // along k first, so that a slot of B is one contiguous piece in either major.
  template <Major M>
  using Stacking = cute::conditional_t<M == Major::MN, cute::Step<cute::_2, cute::_1, cute::_3>,
                                       cute::Step<cute::_1, cute::_2, cute::_3>>;
  template <Major M, class Rows>
  using Atom =
      decltype(cutlass::gemm::collective::detail::ss_smem_selector<M, Element, Rows, TileK>());
  using SmemA = decltype(cute::tile_to_shape(Atom<Layouts::kA, TileM>{},
                                             cute::make_shape(TileM{}, TileK{}, Stages{}),
                                             Stacking<Layouts::kA>{}));  // (M,K,PIPE)
  using SmemB = decltype(cute::tile_to_shape(Atom<Layouts::kB, SlotN>{},
                                             cute::make_shape(TileN{}, TileK{}, Stages{}),
                                             Stacking<Layouts::kB>{}));  // (N,K,PIPE)
  // The same memory slot by slot.
  using SmemBSlots = decltype(cute::tile_to_shape(
      Atom<Layouts::kB, SlotN>{}, cute::make_shape(SlotN{}, TileK{}, Slots{} * Stages{}),
      Stacking<Layouts::kB>{}));  // (SLOT_N,K,SLOT*PIPE)
  static_assert(cute::cosize_v<SmemB> == cute::cosize_v<SmemBSlots>,
                "slots must tile a stage of B without gaps");

  static constexpr uint32_t kSlotBytes = sizeof(Element) * Config::kSlotN * Config::kK;
  static constexpr uint32_t kStageBytes = Config::kStageBytes;
  static_assert(sizeof(Element) == kElementBytes);

  // The epilogue moves squares of 64: one warp group's rows, one swizzle atom wide.
  static constexpr int kStore = 64;
  static constexpr int kStoreBuffers = Config::kStoreBuffers;
  using SmemSquare = decltype(cute::tile_to_shape(
      Atom<Layouts::kD, cute::Int<kStore>>{},
      cute::make_shape(cute::Int<kStore>{}, cute::Int<kStore>{})));  // (64,64)

  // Strides of (row, contiguous) or (contiguous, row) extents.
  template <Major M>
  using Stride = cute::conditional_t<M == Major::MN, cute::Stride<cute::_1, int64_t>,
                                     cute::Stride<int64_t, cute::_1>>;
};

}  // namespace sparsedrop::sm90
