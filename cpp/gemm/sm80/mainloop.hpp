// Multiplies the k steps of a tile, stage by stage, while those to come are on their way.

#pragma once

#include "gemm/sm80/config.hpp"

#include "gemm/sm80/loader.hpp"
#include "gemm/sm80/warp_place.hpp"

namespace sparsedrop::sm80 {

// The accumulators of one thread: of every eight columns two neighbours in two rows, as mma.sync
// leaves them.
template <class Config>
struct Accumulators {
  static constexpr int kAtomsM = Config::kWarpM / 16;
  static constexpr int kAtomsN = kWarpN / 8;
  float of[kAtomsM][kAtomsN][4];

  SPARSEDROP_DEVICE float* data() { return &of[0][0][0]; }
};

template <class Traits>
class Mainloop {
 public:
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using Loader = sm80::Loader<Traits>;
  using Accumulators = sm80::Accumulators<Config>;

  // By all threads; `memory` is `stages` stages of shared memory.
  SPARSEDROP_DEVICE Mainloop(typename Loader::Params const& params, void const* memory,
                             int32_t stages)
      : loader_(params), memory_(shared_address(memory)), stages_(stages) {}

  // Sends for the first k steps of a tile. No warp may still read a stage.
  SPARSEDROP_DEVICE void begin(TileRecord const& tile, KTiles const& k_tiles) {
    loader_.begin(tile, k_tiles);
    for (int32_t stage = 0; stage < stages_ - 1; ++stage) {
      loader_.copy_step(memory_ + uint32_t(stage * Config::kStageBytes));
    }
  }

  // Adds up the tile that was begun last, in warps whose slot it has. The others send and wait as
  // often: a barrier counts warps, whichever loop they come from. Ends behind one: stages are free.
  SPARSEDROP_DEVICE void multiply(int32_t k_tiles, bool has_slot, Accumulators& acc) {
    int32_t const steps = k_tiles * Traits::kStepsPerTile;
    if (has_slot) {
      run<true>(steps, acc);
    } else {
      run<false>(steps, acc);
    }
    __syncthreads();
  }

  // Where in D this warp's part of a tile begins.
  struct Place {
    int32_t row;
    int32_t column;

    SPARSEDROP_DEVICE bool has_slot() const { return column >= 0; }
  };

  SPARSEDROP_DEVICE static Place place_of(TileRecord const& tile) {
    static_assert(Config::kSlots == 2);
    auto const place = WarpPlace<Config>::of(thread_id());
    int32_t const slot = place.slot() == 0 ? tile.slot[0] : tile.slot[1];
    return {tile.m * Config::kM + place.row,
            slot == kNoSlot ? -1 : slot * Config::kSlotN + place.column_in_slot()};
  }

 private:
  using PanelA = typename Loader::PanelA;
  using PanelB = typename Loader::PanelB;
  using FragmentA = Fragment<PanelA, Role::a>;
  using FragmentB = Fragment<PanelB, Role::b>;
  static constexpr int kFragmentsA = Config::kWarpM / FragmentA::kRows;
  static constexpr int kFragmentsB = kWarpN / FragmentB::kRows;
  static constexpr int kSteps = FragmentA::kSteps;  // of a stage
  static_assert(kSteps == FragmentB::kSteps && Loader::kParts < kSteps,
                "a stage is sent for while the one before is multiplied, but for its last step");

  struct Fragments {
    uint32_t a[kFragmentsA][4];
    uint32_t b[kFragmentsB][4];
  };

  // Where in a stage this lane's part of the first fragments lies.
  struct LaneOffsets {
    uint32_t a;
    uint32_t b;
  };

  SPARSEDROP_DEVICE static LaneOffsets lane_offsets() {
    auto const place = WarpPlace<Config>::of(thread_id());
    return {uint32_t(FragmentA::lane_offset(place.row, place.lane)),
            uint32_t(PanelA::kBytes + place.slot() * PanelB::kBytes +
                     FragmentB::lane_offset(place.column_in_slot(), place.lane))};
  }

  // Every iteration sends for a stage and waits for the next one before its last step, whose
  // multiplications cover the wait: so the first fragments of a stage are there when it begins. The
  // stage that is sent for was read to its end before that barrier of the iteration before.
  template <bool kMultiplies>
  SPARSEDROP_DEVICE void run(int32_t steps, Accumulators& acc) {
    if (steps == 0) {
      return;
    }
    int32_t read = 0;
    int32_t write = stages_ - 1;
    LaneOffsets const lane = lane_offsets();
    Fragments fragments[2];
    wait_for_stage();
    if constexpr (kMultiplies) {
      load<0>(fragments[0], memory_, lane);
    }
#pragma unroll 1
    for (; steps > 0; --steps) {
      uint32_t const stage = memory_ + uint32_t(read * Config::kStageBytes);
      uint32_t const sent_for = memory_ + uint32_t(write * Config::kStageBytes);
      loader_.template copy_part<0>(sent_for);
      step<0, kMultiplies>(fragments, stage, lane, acc);
      loader_.template copy_part<1>(sent_for);
      step<1, kMultiplies>(fragments, stage, lane, acc);
      loader_.template copy_part<2>(sent_for);
      step<2, kMultiplies>(fragments, stage, lane, acc);
      read = after(read);
      write = after(write);
      wait_for_stage();
      // Behind the last stage, what is loaded is not used.
      step<3, kMultiplies>(fragments, memory_ + uint32_t(read * Config::kStageBytes), lane, acc);
    }
    static_assert(kSteps == 4 && Loader::kParts == 3);
  }

  // Loads the fragments of the step behind `kStep` and multiplies those of this one.
  template <int kStep, bool kMultiplies>
  SPARSEDROP_DEVICE static void step(Fragments (&fragments)[2], uint32_t stage,
                                     LaneOffsets const& lane, Accumulators& acc) {
    if constexpr (kMultiplies) {
      load<(kStep + 1) % kSteps>(fragments[(kStep + 1) % 2], stage, lane);
      multiply(fragments[kStep % 2], acc);
    }
  }

  SPARSEDROP_DEVICE int32_t after(int32_t stage) const {
    return stage + 1 == stages_ ? 0 : stage + 1;
  }

  // Until the oldest stage that was sent for, and is not waited for yet, has landed for all.
  SPARSEDROP_DEVICE void wait_for_stage() const {
    static_assert(kMinStages == 2 && kMaxStages == 4);
    if (stages_ == 2) {
      wait_for_copies<0>();
    } else if (stages_ == 3) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<2>();
    }
    __syncthreads();
  }

  template <int kStep>
  SPARSEDROP_DEVICE static void load(Fragments& fragments, uint32_t stage,
                                     LaneOffsets const& lane) {
#pragma unroll
    for (int i = 0; i < kFragmentsA; ++i) {
      load_one<FragmentA, PanelA>(fragments.a[i], stage + lane.a, i, kStep);
    }
#pragma unroll
    for (int i = 0; i < kFragmentsB; ++i) {
      load_one<FragmentB, PanelB>(fragments.b[i], stage + lane.b, i, kStep);
    }
  }

  template <class Fragment, class Panel>
  SPARSEDROP_DEVICE static void load_one(uint32_t (&to)[4], uint32_t first, int i, int step) {
    if constexpr (!Panel::kByMatrix) {
#pragma unroll
      for (int reg = 0; reg < 4; ++reg) {
        to[reg] = load_word(Fragment::word(first, i, step, reg));
      }
    } else if constexpr (Panel::kKMajor) {
      load_matrices(to, Fragment::matrix(first, i, step));
    } else {
      load_transposed(to, Fragment::matrix(first, i, step));
    }
  }

  // Here and not where they are loaded: the step that loads them would wait until they are there.
  template <int kCount>
  SPARSEDROP_DEVICE static void round(uint32_t (&fragments)[kCount][4]) {
#pragma unroll
    for (auto& fragment : fragments) {
#pragma unroll
      for (uint32_t& word : fragment) {
        word = round_to_tf32(word);
      }
    }
  }

  // Back and forth along n, so that the fragment of B that was used last is used again.
  SPARSEDROP_DEVICE static void multiply(Fragments& fragments, Accumulators& acc) {
    using Mma = typename MmaOf<Element>::Type;
    if constexpr (Traits::kIsTf32) {
      round(fragments.a);
      round(fragments.b);
    }
#pragma unroll
    for (int i = 0; i < Accumulators::kAtomsM; ++i) {
#pragma unroll
      for (int column = 0; column < Accumulators::kAtomsN; ++column) {
        int const j = i % 2 == 0 ? column : Accumulators::kAtomsN - 1 - column;
        auto const& a = fragments.a[i];
        auto const& b = fragments.b[j / 2];
        float (&d)[4] = acc.of[i][j];
        Mma::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[j % 2 * 2], b[j % 2 * 2 + 1],
                 d[0], d[1], d[2], d[3]);
      }
    }
  }

  Loader loader_;
  uint32_t memory_;
  int32_t stages_;
};

}  // namespace sparsedrop::sm80
