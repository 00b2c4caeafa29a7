// Copies the operands of a tile's live K tiles into stages, one behind the other. All threads of
// the CTA do it together, and each keeps book of it for itself.

#pragma once

#include "gemm/sm80/config.hpp"

#include "gemm/sm80/instructions.hpp"
#include "gemm/sm80/k_steps.hpp"
#include "gemm/sm80/panel.hpp"

namespace sparsedrop::sm80 {

template <class Element>
struct OperandParams {
  Element const* data;
  int64_t ld;
  int32_t rows;  // m or n
  int32_t k;
};

// One thread's share of a panel at one place of the operand.
template <class Panel, int kThreads>
class PanelSource {
 public:
  using Element = typename Panel::Element;
  using Share = PanelShare<Panel, kThreads>;

  SPARSEDROP_DEVICE void begin(OperandParams<Element> const& operand, int32_t first_row,
                               int32_t thread) {
    int32_t const line = Share::line(thread);
    int32_t const along = Share::chunk(thread) * Panel::kVector;
    int32_t const rows_left = operand.rows - first_row;
    lines_ = (Panel::kKMajor ? rows_left : 0) - line;
    along_ = (Panel::kKMajor ? 0 : rows_left) - along;
    at_ = operand.data + (Panel::kKMajor ? int64_t(first_row + line) * operand.ld + along
                                         : line * operand.ld + first_row + along);
  }

  // The panel of k step `step`. What is beyond the operand is filled with zeros.
  SPARSEDROP_DEVICE void copy(OperandParams<Element> const& operand, int32_t step,
                              uint32_t to) const {
    int32_t const k = step * Panel::kDepth;
    int32_t const k_left = operand.k - k;
    int32_t const lines = lines_ + (Panel::kKMajor ? 0 : k_left);
    int32_t const along = along_ + (Panel::kKMajor ? k_left : 0);
    Element const* from = at_ + (Panel::kKMajor ? int64_t(k) : k * operand.ld);
#pragma unroll
    for (int i = 0; i < Share::kCopies; ++i) {
      bool const is_inside = i * Share::kLineStep < lines && 0 < along;
      copy_chunk(to + uint32_t(i * Share::kStepBytes), from, is_inside);
      from += Share::kLineStep * operand.ld;
    }
  }

 private:
  Element const* at_;
  // What is left of the operand from the thread's first chunk on, but for k: lines, and elements of
  // a line.
  int32_t lines_;
  int32_t along_;
};

template <class Traits>
class Loader {
 public:
  using Element = typename Traits::Element;
  using Config = typename Traits::Config;
  using PanelA = Panel<Element, Traits::kAKMajor, Config::kM>;
  using PanelB = Panel<Element, Traits::kBKMajor, Config::kSlotN>;
  using Steps = KSteps<Traits::kStepsPerTile>;
  static_assert(PanelA::kBytes + Config::kSlots * PanelB::kBytes == Config::kStageBytes,
                "a stage is one panel of A and one for each slot");

  struct Params {
    OperandParams<Element> a;
    OperandParams<Element> b;
  };

  SPARSEDROP_DEVICE explicit Loader(Params const& params) : params_(params) {}

  // From here on, the k steps of that tile.
  SPARSEDROP_DEVICE void begin(TileRecord const& tile, KTiles k_tiles) {
    if (tile.k_before > 0) {
      k_tiles.skip(tile.k_before);
    }
    steps_ = Steps(k_tiles, tile.k_tiles);
    int32_t const thread = thread_id();
    to_a_ = uint32_t(ShareA::offset(thread));
    to_b_ = uint32_t(PanelA::kBytes + ShareB::offset(thread));
    a_.begin(params_.a, tile.m * Config::kM, thread);
#pragma unroll
    for (int s = 0; s < Config::kSlots; ++s) {
      // Without a slot, a panel begins where no row is left: nothing is read.
      int32_t const slot = tile.slot[s];
      b_[s].begin(params_.b, slot == kNoSlot ? params_.b.rows : slot * Config::kSlotN, thread);
    }
  }

  // One k step is copied in so many parts, each of which one thread issues at once: the memory
  // pipeline takes them better a few at a time. Behind the last step, the parts are empty.
  static constexpr int kParts = 1 + Config::kSlots;

  template <int kPart>
  SPARSEDROP_DEVICE void copy_part(uint32_t stage) {
    if constexpr (kPart == 0) {
      step_ = steps_.next(step_);
      if (step_ != kNoKTile) {
        a_.copy(params_.a, step_, stage + to_a_);
      }
    } else {
      constexpr int kSlot = kPart - 1;
      if (step_ != kNoKTile) {
        b_[kSlot].copy(params_.b, step_, stage + to_b_ + kSlot * PanelB::kBytes);
      }
    }
    if constexpr (kPart == kParts - 1) {
      commit_copies();
    }
  }

  SPARSEDROP_DEVICE void copy_step(uint32_t stage) {
    copy_part<0>(stage);
    copy_part<1>(stage);
    copy_part<2>(stage);
    static_assert(kParts == 3);
  }

 private:
  using ShareA = PanelShare<PanelA, Config::kThreads>;
  using ShareB = PanelShare<PanelB, Config::kThreads>;

  Params const& params_;
  Steps steps_{KTiles(nullptr, nullptr, 0), 0};
  int32_t step_ = kNoKTile;
  PanelSource<PanelA, Config::kThreads> a_;
  PanelSource<PanelB, Config::kThreads> b_[Config::kSlots];
  // Where in a stage this thread's first chunks of A and B go.
  uint32_t to_a_;
  uint32_t to_b_;
};

}  // namespace sparsedrop::sm80
