// What is compiled in, and every number that follows from it.

#pragma once

#include <cstdint>
#include <type_traits>

#include "common/gpu.hpp"
#include "common/host_device.hpp"
#include "schedule/tile_record.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop::sm80 {

// As for sm90: beyond, there are tiles enough, and their sums would fill 256 MB.
constexpr Limits kLimits{/*max_split_k=*/8, /*max_split_n=*/128, /*max_split_slots=*/8192};

// The machine code is that of 8.0, which knows nothing of it: see common/overlap.hpp.
constexpr bool kOverlaps = false;

// A CTA leaves its partial sums as a whole.
constexpr int kPartialGroups = 1;

// A line of an operand in shared memory: all banks once. A stage is so deep in bytes of k: a K tile
// of 16-bit elements, half of one in fp32.
constexpr int kLineBytes = 128;

// Stages and lines begin at multiples of it, or addresses could not be put together by xor.
constexpr int kAlignment = 1024;

// What one warp multiplies: 64 columns, all of one slot.
constexpr int kWarpN = 64;

constexpr int kPartitions = 4;  // of an SM; warp w runs on w % 4

// More do not gain: two cover the latency of memory where two CTAs share an SM, three where one has
// it for itself.
constexpr int kMinStages = 2;
constexpr int kMaxStages = 4;

template <int M, int N, int WarpM, int CtasPerSm>
struct TileConfig {
  static constexpr int kM = M;
  static constexpr int kN = N;
  static constexpr int kSlots = 2;
  static constexpr int kSlotN = N / kSlots;
  static constexpr Tile kTile{kM, kN, kMaskUnit, kSlotN, Architecture::sm80};

  static constexpr int kWarpM = WarpM;
  static constexpr int kWarpsM = M / WarpM;
  static constexpr int kWarpsN = N / kWarpN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static_assert(kWarpsM * WarpM == M && kWarpsN * kWarpN == N, "warps share a tile evenly");
  static_assert(WarpM % 32 == 0, "where m is contiguous, a warp stores 32 rows of D at a time");
  static_assert(kSlotN % kWarpN == 0, "a warp's columns are of one slot");
  static_assert(kSlotN == kMaskUnit || kSlotN == 2 * kMaskUnit,
                "SlotBits reads slots of 64 or 128");

  // Warps are numbered along m first, so that those of a slot are neighbours. Where they are fewer
  // than the partitions, a slot takes as long alone as both do together.
  static constexpr bool kHasParallelSlots = kWarpsM * kWarpsN / kSlots < kPartitions;

  static constexpr int kSums = WarpM * kWarpN / kWarp;  // accumulators of one thread
  static constexpr int kStageBytes = (M + N) * kLineBytes;
  static constexpr int kCtasPerSm = CtasPerSm;  // as many as registers are shared out for
  static constexpr bool kCanSplit = kN <= kLimits.max_split_n;
};

// How many CTAs an SM holds, and how many stages each has.
struct Residency {
  int32_t ctas_per_sm;
  int32_t stages;
};

// CTAs that a GPU's shared memory has room for beside each other, `wanted` at most, and as many
// stages as it then leaves them.
constexpr Residency residency(int32_t stage_bytes, int32_t other_bytes, Gpu const& gpu,
                              int32_t wanted) {
  for (int32_t ctas = wanted; ctas >= 1; --ctas) {
    int32_t const share = gpu.shared_per_sm / ctas - gpu.shared_reserved;
    int32_t const bytes = share < gpu.shared_per_cta ? share : gpu.shared_per_cta;
    int32_t const stages = (bytes - other_bytes) / stage_bytes;
    if (stages >= kMinStages || ctas == 1) {
      return {ctas, stages < kMaxStages ? stages : kMaxStages};
    }
  }
  return {1, kMinStages};
}

// What a CTA needs beside its stages: Kernel::SharedStorage.
constexpr int32_t kSchedulerBytes = 2 * 1024;

// Of a launch of so many CTAs, or of so many records: few have an SM each for themselves.
template <class Config>
constexpr Residency residency_of(Gpu const& gpu, int64_t ctas) {
  int64_t const for_each_sm = ceil_div(ctas, gpu.sms);
  auto const wanted = for_each_sm < Config::kCtasPerSm ? int32_t(for_each_sm) : Config::kCtasPerSm;
  return residency(Config::kStageBytes, kSchedulerBytes, gpu, wanted);
}

template <class... Configs>
struct ConfigList {};

// The support matrix, in the order of tile ids. Threads of the first two have 255 registers, half
// of them accumulators: an SM has room for eight such warps.
using TileConfigs = ConfigList<TileConfig<128, 256, 64, 1>,  //
                               TileConfig<128, 128, 64, 2>,  //
                               TileConfig<64, 128, 32, 2>>;

// What few products need is in kernels of its own, as for sm90. A wide product writes D in fp32.
// Which extent of D is contiguous is found out in the kernel: it decides about a tile's last
// instructions only.
enum class Variant { plain, activates, split_k, wide, wide_split_k };

template <class E, class C, bool AKMajor, bool BKMajor, Variant kVariant>
struct Traits {
  using Element = E;
  using Config = C;
  static constexpr bool kAKMajor = AKMajor;
  static constexpr bool kBKMajor = BKMajor;
  static constexpr bool kActivates = kVariant == Variant::activates;
  static constexpr bool kSplits = kVariant == Variant::split_k || kVariant == Variant::wide_split_k;
  static constexpr bool kIsWide = kVariant == Variant::wide || kVariant == Variant::wide_split_k;
  // fp32 operands are multiplied as tf32; D is in fp32 then, too.
  static constexpr bool kIsTf32 = std::is_same<Element, float>::value;
  using Result = std::conditional_t<kIsWide, float, Element>;
  static_assert(!kIsWide || (!AKMajor && !BKMajor && !kIsTf32),
                "D in fp32, of 16-bit operands, is compiled for weight gradients only");
  static_assert(!kSplits || Config::kCanSplit, "wide tiles are not split");

  static constexpr int kDepth = kLineBytes / int(sizeof(Element));  // of a stage, along k
  static constexpr int kStepsPerTile = kMaskUnit / kDepth;
  static_assert(kStepsPerTile * kDepth == kMaskUnit, "stages fill a K tile");
};

}  // namespace sparsedrop::sm80
