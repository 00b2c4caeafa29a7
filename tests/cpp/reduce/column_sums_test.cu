// On a GPU with clusters: the kernel without them finds the same sums, to the bit.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "device_memory.hpp"
#include "reduce/column_sums.hpp"

namespace sparsedrop {
namespace {

void sum_both_ways(int64_t rows, int64_t cols, int32_t block_rows) {
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
  std::vector<__nv_bfloat16> const nothing(size_t(cols), __float2bfloat16(-1.0f));
  __nv_bfloat16* const outs[] = {to_device(nothing), to_device(nothing)};
  MaskLines by_col;
  if (block_rows > 0) {
    by_col = {to_device(words), mask_line_words(rows), kMaskUnit};
  }
  column_sum::Arguments args{to_device(matrix), rows, cols, cols, by_col, outs[0]};
  auto const stripes = unsigned(ceil_div(cols, column_sum::kStripe));
  column_sum::single_kernel<__nv_bfloat16><<<dim3(1, stripes), column_sum::kThreads>>>(args);

  args.out = outs[1];
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {column_sum::kShares, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(column_sum::kShares, stripes);
  config.blockDim = dim3(column_sum::kThreads);
  config.attrs = &cluster;
  config.numAttrs = 1;
  ASSERT_EQ(cudaLaunchKernelEx(&config, column_sum::cluster_kernel<__nv_bfloat16>, args),
            cudaSuccess);
  std::vector<__nv_bfloat16> const found[] = {to_host(outs[0], size_t(cols)),
                                              to_host(outs[1], size_t(cols))};
  for (size_t col = 0; col < size_t(cols); ++col) {
    ASSERT_EQ(__bfloat162float(found[0][col]), __bfloat162float(found[1][col])) << "column " << col;
    double truth = 0.0;
    for (int64_t row = 0; row < rows; ++row) {
      int64_t const unit = row / kMaskUnit;
      bool const is_live =
          block_rows == 0 ||
          (words[size_t(int64_t(col) / kMaskUnit * mask_line_words(rows) + unit / 32)] >>
               (unit % 32) &
           1u) != 0;
      truth += is_live ? double(__bfloat162float(matrix[size_t(row * cols) + col])) : 0.0;
    }
    ASSERT_NEAR(__bfloat162float(found[0][col]), truth, 1e-3 + std::abs(truth) / 256);
  }
}

TEST(ColumnSums, AreTheSameWithoutClusters) {
  int has_clusters = 0;
  if (cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, 0) != cudaSuccess ||
      has_clusters == 0) {
    GTEST_SKIP() << "no GPU with clusters";
  }
  for (int64_t rows : {1, 63, 64, 2048, 5000}) {
    for (int64_t cols : {8, 64, 200}) {
      for (int32_t block_rows : {0, 64}) {
        sum_both_ways(rows, cols, block_rows);
      }
    }
  }
}

}  // namespace
}  // namespace sparsedrop
