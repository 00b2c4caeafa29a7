// Sums of the columns of a masked matrix: the gradient of a bias.

#include "reduce/column_sums.hpp"

namespace sparsedrop {
namespace {

template <class Element>
cudaError_t launch_sums(sums::Arguments const& args, bool has_clusters, cudaStream_t stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = sums::kShares;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(has_clusters ? sums::kShares : 1, unsigned(ceil_div(args.cols, sums::kStripe)));
  config.blockDim = dim3(sums::kThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = has_clusters ? 1 : 0;
  return has_clusters ? cudaLaunchKernelEx(&config, sums::cluster_kernel<Element>, args)
                      : cudaLaunchKernelEx(&config, sums::single_kernel<Element>, args);
}

}  // namespace

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, void* out, cudaStream_t stream) {
  bool const is_readable = matrix.data != nullptr && out != nullptr &&
                           reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
                           matrix.order == Order::row_major && matrix.ld % sums::kVector == 0 &&
                           cols % sums::kVector == 0;
  bool const has_mask = is_mask(mask);
  bool const fits = !has_mask || (mask.col_words != nullptr && mask.block_cols > 0 &&
                                  mask.block_cols % sums::kStripe == 0 && mask.block_rows > 0 &&
                                  mask.block_rows % kMaskUnit == 0);
  if (!is_readable || !fits || rows < 1 || cols < 1 || cols > kMaxSumColumns) {
    return cudaErrorInvalidValue;
  }
  int device = 0;
  int has_clusters = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device);
  }
  if (status != cudaSuccess) {
    return status;
  }
  MaskLines by_col{};
  if (has_mask) {
    by_col = {mask.col_words, mask_line_words(rows), mask.block_cols};
  }
  sums::Arguments const args{matrix.data, rows, cols, matrix.ld, by_col, out};
  switch (dtype) {
    case DataType::bf16:
      return launch_sums<__nv_bfloat16>(args, has_clusters != 0, stream);
    case DataType::fp16:
      return launch_sums<__half>(args, has_clusters != 0, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
