// The kernels of 8.0 without a GPU: what each thread copies and reads of a stage, by an emulation
// of ldmatrix and the layout of operands that mma.sync documents.

#include "gemm/sm80/panel.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "gemm/sm80/k_steps.hpp"
#include "gemm/sm80/warp_place.hpp"

namespace sparsedrop::sm80 {
namespace {

struct Half {
  uint16_t bits;
};

constexpr int kBanks = 32;
constexpr int kPhase = 8;  // lanes that the memory serves at once, of 16 bytes each

// The byte in a panel of element (row, k), from the panel's definition.
template <class Panel>
int byte_of(int row, int k) {
  int const line = Panel::kKMajor ? row : k;
  int const along = Panel::kKMajor ? k : row;
  return Panel::offset(line, along / Panel::kVector) +
         along % Panel::kVector * int(sizeof(typename Panel::Element));
}

template <class Panel>
void holds_every_element_once(int rows) {
  std::set<int> bytes;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < Panel::kDepth; ++k) {
      int const byte = byte_of<Panel>(row, k);
      EXPECT_GE(byte, 0);
      EXPECT_LE(byte + int(sizeof(typename Panel::Element)), Panel::kBytes);
      bytes.insert(byte);
    }
  }
  EXPECT_EQ(int(bytes.size()), rows * Panel::kDepth);
}

// As the loader goes: one chunk, and more of them at constant distances.
template <class Panel, int kThreads>
void is_copied_once_without_bank_conflicts() {
  using Share = PanelShare<Panel, kThreads>;
  std::set<int> chunks;
  for (int i = 0; i < Share::kCopies; ++i) {
    for (int thread = 0; thread < kThreads; ++thread) {
      int const at = Share::offset(thread) + i * Share::kStepBytes;
      EXPECT_EQ(at,
                Panel::offset(Share::line(thread) + i * Share::kLineStep, Share::chunk(thread)));
      chunks.insert(at);
    }
    for (int first = 0; first < kThreads; first += kPhase) {
      std::set<int> banks;
      for (int thread = first; thread < first + kPhase; ++thread) {
        banks.insert(Share::offset(thread) % kLineBytes);
      }
      EXPECT_EQ(int(banks.size()), kPhase);
    }
  }
  EXPECT_EQ(int(chunks.size()), Panel::kBytes / kChunkBytes);
}

using Element = std::pair<int, int>;  // row, k

// What of an operand lies where in shared memory.
template <class Panel>
std::map<int, Element> fill_panel(int rows) {
  std::map<int, Element> memory;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < Panel::kDepth; ++k) {
      memory[byte_of<Panel>(row, k)] = {row, k};
    }
  }
  return memory;
}

// The elements in register `reg` of a lane, as ldmatrix leaves them: the lanes 8 reg to 8 reg + 7
// name eight lines of 16 bytes; transposed, a lane gets one element of two of them.
template <class Panel, class Fragment>
std::vector<Element> read_by_matrix(std::map<int, Element> const& memory, int row, int i, int step,
                                    int reg, int lane) {
  auto const line = [&](int l) {
    return int(Fragment::matrix(uint32_t(Fragment::lane_offset(row, 8 * reg + l)), i, step));
  };
  constexpr int kSize = sizeof(typename Panel::Element);
  std::vector<Element> elements;
  for (int byte = 0; byte < 4; byte += kSize) {
    int const word = lane % 4 * 4 + byte;
    elements.push_back(
        memory.at(Panel::kKMajor ? line(lane / 4) + word : line(word / kSize) + lane / 4 * kSize));
  }
  return elements;
}

// The elements that mma.sync takes from register `reg` of a lane, of A or B.
template <Role kRole, int kStepDepth>
std::vector<Element> wanted(int row, int i, int step, int reg, int lane) {
  // a0 a1 a2 a3 and, of two fragments of B, b0 b1 b0 b1
  constexpr int kRowOf[2][4] = {{0, 8, 0, 8}, {0, 0, 8, 8}};
  constexpr int kUpperOf[2][4] = {{0, 0, 1, 1}, {0, 1, 0, 1}};
  constexpr int kWord = kStepDepth / 8;  // elements of a register
  std::vector<Element> elements;
  for (int e = 0; e < kWord; ++e) {
    int const k =
        step * kStepDepth + kUpperOf[int(kRole)][reg] * kStepDepth / 2 + lane % 4 * kWord + e;
    elements.emplace_back(row + 16 * i + kRowOf[int(kRole)][reg] + lane / 4, k);
  }
  return elements;
}

template <class Panel, Role kRole>
void is_read_as_mma_takes_it(int rows, int warp_rows) {
  using Fragment = sm80::Fragment<Panel, kRole>;
  auto const memory = fill_panel<Panel>(rows);
  for (int row = 0; row < rows; row += warp_rows) {
    for (int i = 0; i < warp_rows / Fragment::kRows; ++i) {
      for (int step = 0; step < Fragment::kSteps; ++step) {
        for (int reg = 0; reg < 4; ++reg) {
          std::set<int> banks;
          for (int lane = 0; lane < kWarp; ++lane) {
            std::vector<Element> read;
            if (Panel::kByMatrix) {
              read = read_by_matrix<Panel, Fragment>(memory, row, i, step, reg, lane);
              if (lane / 8 == reg) {
                banks.insert(
                    int(Fragment::matrix(uint32_t(Fragment::lane_offset(row, lane)), i, step)) %
                    kLineBytes / kChunkBytes);
              }
            } else {
              auto const at =
                  int(Fragment::word(uint32_t(Fragment::lane_offset(row, lane)), i, step, reg));
              read = {memory.at(at)};
              banks.insert(at / 4 % kBanks);
            }
            auto const want = wanted<kRole, Fragment::kStepDepth>(row, i, step, reg, lane);
            ASSERT_EQ(read, want) << "row " << row << ", fragment " << i << ", step " << step
                                  << ", register " << reg << ", lane " << lane;
          }
          ASSERT_EQ(int(banks.size()), Panel::kByMatrix ? kPhase : kBanks);
        }
      }
    }
  }
}

template <class Element, bool kKMajor, class Config>
void check_operands() {
  using PanelA = Panel<Element, kKMajor, Config::kM>;
  using PanelB = Panel<Element, kKMajor, Config::kSlotN>;
  holds_every_element_once<PanelA>(Config::kM);
  holds_every_element_once<PanelB>(Config::kSlotN);
  is_copied_once_without_bank_conflicts<PanelA, Config::kThreads>();
  is_copied_once_without_bank_conflicts<PanelB, Config::kThreads>();
  is_read_as_mma_takes_it<PanelA, Role::a>(Config::kM, Config::kWarpM);
  is_read_as_mma_takes_it<PanelB, Role::b>(Config::kSlotN, kWarpN);
  EXPECT_EQ(PanelA::kBytes + Config::kSlots * PanelB::kBytes, Config::kStageBytes);
  EXPECT_EQ(PanelA::kBytes % kAlignment, 0);
  EXPECT_EQ(PanelB::kBytes % kAlignment, 0);
}

template <class Config>
void check_config() {
  check_operands<Half, true, Config>();
  check_operands<Half, false, Config>();
  check_operands<float, true, Config>();
  check_operands<float, false, Config>();
  // Warps share a tile, each within one slot.
  std::set<std::tuple<int, int, int>> places;
  for (int thread = 0; thread < Config::kThreads; ++thread) {
    auto const place = WarpPlace<Config>::of(thread);
    EXPECT_EQ(place.row % Config::kWarpM, 0);
    EXPECT_EQ(place.column % kWarpN, 0);
    EXPECT_LT(place.row, Config::kM);
    EXPECT_LT(place.column, Config::kN);
    EXPECT_EQ(place.slot() * Config::kSlotN + place.column_in_slot(), place.column);
    EXPECT_LE(place.column_in_slot() + kWarpN, Config::kSlotN);
    places.emplace(place.row, place.column, place.lane);
  }
  EXPECT_EQ(int(places.size()), Config::kThreads);
  EXPECT_EQ(Config::kSums * Config::kThreads, Config::kM * Config::kN);
}

template <class... Configs>
void check_all(ConfigList<Configs...>) {
  (check_config<Configs>(), ...);
}

TEST(Sm80Panel, IsCopiedOnceAndReadAsMmaTakesIt) { check_all(TileConfigs{}); }

// From the tables of the CUDA programming guide: bytes of an SM, and of one CTA.
constexpr Gpu gpu_of(int32_t sms, int32_t shared_per_sm) {
  return {sms, shared_per_sm, shared_per_sm - 1024, 1024};
}
constexpr Gpu kA100 = gpu_of(108, 164 * 1024);  // 8.0
constexpr Gpu kSmall = gpu_of(84, 100 * 1024);  // 8.6, 8.9, 12.0
constexpr Gpu kH200 = gpu_of(132, 228 * 1024);  // 9.0, 10.0

template <class... Configs>
std::vector<std::pair<int, int>> residencies(ConfigList<Configs...>, Gpu const& gpu, int64_t ctas) {
  std::vector<std::pair<int, int>> all;
  for (Residency const r : {residency_of<Configs>(gpu, ctas)...}) {
    all.emplace_back(r.ctas_per_sm, r.stages);
  }
  return all;
}

TEST(Sm80Residency, IsWhatTheReadmeSays) {
  using All = std::vector<std::pair<int, int>>;  // CTAs on an SM, stages of each
  EXPECT_EQ(residencies(TileConfigs{}, kA100, 5000), (All{{1, 3}, {2, 2}, {2, 3}}));
  EXPECT_EQ(residencies(TileConfigs{}, kSmall, 5000), (All{{1, 2}, {1, 3}, {1, 4}}));
  EXPECT_EQ(residencies(TileConfigs{}, kH200, 5000), (All{{1, 4}, {2, 3}, {2, 4}}));
}

TEST(Sm80Residency, GivesFewCtasAnSmEach) {
  using All = std::vector<std::pair<int, int>>;
  EXPECT_EQ(residencies(TileConfigs{}, kA100, 108), (All{{1, 3}, {1, 4}, {1, 4}}));
  EXPECT_EQ(residencies(TileConfigs{}, kA100, 109), (All{{1, 3}, {2, 2}, {2, 3}}));
}

TEST(Sm80Residency, HasNoStagesWhereThereIsNoRoom) {
  using Config = TileConfig<128, 256, 64, 1>;
  EXPECT_LT(residency_of<Config>(gpu_of(40, 64 * 1024), 40).stages, kMinStages);
}

template <int kPerTile>
std::vector<int32_t> steps_of(uint32_t words, int32_t k_tiles, int32_t count, int32_t skipped) {
  KTiles list(&words, nullptr, k_tiles);
  list.skip(skipped);
  KSteps<kPerTile> steps(list, count);
  std::vector<int32_t> all;
  int32_t step = kNoKTile;
  for (int i = 0; i < count * kPerTile + 3; ++i) {
    step = steps.next(step);
    all.push_back(step);
  }
  return all;
}

TEST(Sm80KSteps, GoThroughTheLiveKTiles) {
  using Steps = std::vector<int32_t>;
  EXPECT_EQ(steps_of<1>(0b101101, 6, 4, 0), (Steps{0, 2, 3, 5, -1, -1, -1}));
  EXPECT_EQ(steps_of<2>(0b1010, 4, 2, 0), (Steps{2, 3, 6, 7, -1, -1, -1}));
  EXPECT_EQ(steps_of<2>(0b1011, 4, 1, 1), (Steps{2, 3, -1, -1, -1}));
  EXPECT_EQ(steps_of<1>(0, 4, 0, 0), (Steps{-1, -1, -1}));
}

}  // namespace
}  // namespace sparsedrop::sm80
