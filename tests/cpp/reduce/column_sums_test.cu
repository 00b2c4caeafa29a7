// On a GPU with clusters: the kernel without them finds the same sums, to the bit.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

#include "device_memory.hpp"
#include "reduce/column_sums.hpp"

namespace sparsedrop {
namespace {

// Added to -1 with `accumulates`, else in place of it.
template <class Out, bool kVectors>
void sum_both_ways(int64_t rows, int64_t cols, int32_t block_rows, bool accumulates) {
  std::mt19937 engine(11);
  std::normal_distribution<float> normal;
  std::vector<__nv_bfloat16> matrix;
  for (int64_t i = 0; i < rows * cols; ++i) {
    matrix.push_back(__float2bfloat16(normal(engine)));
  }
  std::vector<uint32_t> words(size_t(ceil_div(cols, kMaskUnit) * mask_line_words(rows)));
  for (uint32_t& word : words) {
    word = engine();
  }
  std::vector<Out> const before(size_t(cols), Out(-1.0f));
  Out* const outs[] = {to_device(before), to_device(before)};
  MaskLines by_col;
  if (block_rows > 0) {
    by_col = {to_device(words), mask_line_words(rows), kMaskUnit};
  }
  int32_t const stripe = column_sum::stripe_of(cols, kVectors);
  column_sum::Arguments args{to_device(matrix), rows,        cols, cols, by_col, stripe,
                             outs[0],           accumulates, 1.0};
  auto const stripes = unsigned(ceil_div(cols, stripe));
  column_sum::single_kernel<__nv_bfloat16, Out, kVectors>
      <<<dim3(1, stripes), column_sum::kThreads>>>(args);

  args.out = outs[1];
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {column_sum::kShares, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(column_sum::kShares, stripes);
  config.blockDim = dim3(column_sum::kThreads);
  config.attrs = &cluster;
  config.numAttrs = 1;
  ASSERT_EQ(
      cudaLaunchKernelEx(&config, column_sum::cluster_kernel<__nv_bfloat16, Out, kVectors>, args),
      cudaSuccess);
  std::vector<Out> const found[] = {to_host(outs[0], size_t(cols)), to_host(outs[1], size_t(cols))};
  for (size_t col = 0; col < size_t(cols); ++col) {
    ASSERT_EQ(float(found[0][col]), float(found[1][col])) << "column " << col;
    double truth = accumulates ? -1.0 : 0.0;
    for (int64_t row = 0; row < rows; ++row) {
      int64_t const unit = row / kMaskUnit;
      bool const is_live =
          block_rows == 0 ||
          (words[size_t(int64_t(col) / kMaskUnit * mask_line_words(rows) + unit / 32)] >>
               (unit % 32) &
           1u) != 0;
      truth += is_live ? double(__bfloat162float(matrix[size_t(row * cols) + col])) : 0.0;
    }
    double const rounding = std::is_same<Out, float>::value ? 0.0 : std::abs(truth) / 256;
    ASSERT_NEAR(float(found[0][col]), truth, 1e-3 + rounding);
  }
}

TEST(ColumnSums, AreTheSameWithoutClusters) {
  int has_clusters = 0;
  cudaFuncAttributes kernel{};
  if (cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, 0) != cudaSuccess ||
      has_clusters == 0 ||
      cudaFuncGetAttributes(&kernel, column_sum::cluster_kernel<float, float, true>) !=
          cudaSuccess ||
      kernel.ptxVersion < 90) {
    GTEST_SKIP() << "no GPU with clusters, or a build for none";
  }
  for (int64_t rows : {1, 63, 64, 2048, 5000}) {
    for (int32_t block_rows : {0, 64}) {
      for (bool accumulates : {false, true}) {
        for (int64_t cols : {8, 64, 200}) {
          sum_both_ways<__nv_bfloat16, true>(rows, cols, block_rows, accumulates);
          sum_both_ways<float, true>(rows, cols, block_rows, accumulates);
        }
        for (int64_t cols : {8, 65, 200, 1030}) {
          sum_both_ways<float, false>(rows, cols, block_rows, accumulates);
        }
      }
    }
  }
}

// By the entry point, which launches whichever kernel the GPU has.
TEST(ColumnSums, AreWrittenOrAddedInEitherDtype) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t kRows = 300, kCols = 72;
  Matrix const ones{to_device(std::vector<__half>(kRows * kCols, __half(1.0f))), kCols};
  auto* const halves = to_device(std::vector<__half>(kCols, __half(8.0f)));
  auto* const floats = to_device(std::vector<float>(kCols, 0.125f));
  auto const sum = [&](Sums const& out) {
    return column_sums(DataType::fp16, ones, kRows, kCols, {}, out, nullptr);
  };
  ASSERT_EQ(sum({halves, DataType::fp16}), cudaSuccess);
  ASSERT_EQ(sum({floats, DataType::fp32, true}), cudaSuccess);
  for (size_t col = 0; col < kCols; ++col) {
    ASSERT_EQ(float(to_host(halves, kCols)[col]), 300.0f);
    ASSERT_EQ(to_host(floats, kCols)[col], 300.125f);
  }
  ASSERT_EQ(sum({halves, DataType::fp16, true}), cudaSuccess);
  ASSERT_EQ(sum({floats, DataType::fp32}), cudaSuccess);
  for (size_t col = 0; col < kCols; ++col) {
    ASSERT_EQ(float(to_host(halves, kCols)[col]), 600.0f);
    ASSERT_EQ(to_host(floats, kCols)[col], 300.0f);
  }
  ASSERT_EQ(sum({halves, DataType::fp16, false, 0.5}), cudaSuccess);
  ASSERT_EQ(sum({floats, DataType::fp32, true, 2.0}), cudaSuccess);
  for (size_t col = 0; col < kCols; ++col) {
    ASSERT_EQ(float(to_host(halves, kCols)[col]), 150.0f);
    ASSERT_EQ(to_host(floats, kCols)[col], 900.0f);
  }
}

// Before the GPU is asked for anything.
TEST(ColumnSums, RefuseWhatTheyCannotWrite) {
  alignas(16) static char memory[16];
  Matrix const matrix{memory, 8};
  auto const sum = [&](DataType dtype, Sums const& out) {
    return column_sums(dtype, matrix, 1, 8, {}, out, nullptr);
  };
  EXPECT_EQ(sum(DataType::bf16, {memory, DataType::fp16}), cudaErrorInvalidValue);
  EXPECT_EQ(sum(DataType::bf16, {nullptr, DataType::bf16}), cudaErrorInvalidValue);
  EXPECT_EQ(sum(DataType::fp64, {memory, DataType::fp32}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace sparsedrop
