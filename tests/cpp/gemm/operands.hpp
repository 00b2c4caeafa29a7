// What the tests of products on a GPU share: masks and operands as kernels read them, and the ways
// to run a product on each architecture that the GPU runs.

#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "common/host_device.hpp"
#include "device_memory.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The grid of a mask; without blocks, all is live.
struct LiveGrid {
  Blocking by{};
  std::vector<uint8_t> live;

  bool has(int64_t row, int64_t col) const {
    return live.empty() || live[size_t(row / by.block_rows * ceil_div(by.cols, by.block_cols) +
                                       col / by.block_cols)] != 0;
  }
};

inline Mask mask_of(LiveGrid const& grid) {
  if (grid.live.empty()) {
    return {};
  }
  Blocking const& by = grid.by;
  auto const zeros = [](int64_t lines, int64_t words) {
    return to_device(std::vector<uint32_t>(size_t(lines * words)));
  };
  uint32_t* const rows = zeros(ceil_div(by.rows, by.block_rows), mask_line_words(by.cols));
  uint32_t* const cols = zeros(ceil_div(by.cols, by.block_cols), mask_line_words(by.rows));
  EXPECT_EQ(mask_words(to_device(grid.live), by, rows, cols, nullptr), cudaSuccess);
  return {rows, cols, by.block_rows, by.block_cols};
}

template <class Element>
Element* rounded_to_device(std::vector<float> const& values) {
  std::vector<Element> rounded;
  for (float const value : values) {
    rounded.push_back(Element(value));
  }
  return to_device(rounded);
}

inline std::vector<Architecture> all_architectures() {
  std::vector<Architecture> all;
  for (int i = 0; i < architecture_count(); ++i) {
    all.push_back(architecture(i));
  }
  return all;
}

inline std::string describe(Choice const& choice) {
  return "tile " + std::to_string(choice.tile) + (choice.swap ? ", swapped" : "") +
         ", split into " + std::to_string(choice.split_k);
}

// Skips where there is no GPU that runs the architecture.
class OnEachKernels : public testing::TestWithParam<Architecture> {
 protected:
  void SetUp() override {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) != cudaSuccess ||
        !runs_on(GetParam(), major, minor)) {
      GTEST_SKIP() << "no GPU that runs " << name(GetParam());
    }
  }

  // Every tile, either way round, split into up to `max_split`; none for a dtype that the
  // architecture does not take.
  std::vector<Choice> all_choices(DataType dtype, int max_split) const {
    std::vector<Choice> choices;
    for (int id = 0; id < tile_count(GetParam()) && takes(GetParam(), dtype); ++id) {
      bool const may_split = tile(GetParam(), id).n <= limits(GetParam()).max_split_n;
      for (int split_k = 1; split_k <= (may_split ? max_split : 1); ++split_k) {
        for (bool swap : {false, true}) {
          choices.push_back({id, swap, split_k, GetParam()});
        }
      }
    }
    return choices;
  }
};

#define INSTANTIATE_ON_EACH(Suite)                                            \
  INSTANTIATE_TEST_SUITE_P(On, Suite, testing::ValuesIn(all_architectures()), \
                           [](auto const& on) { return std::string(name(on.param)); })

}  // namespace sparsedrop
