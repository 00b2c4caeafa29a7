// Sums of the columns of a masked matrix: the gradient of a bias.

#include "common/device_bits.hpp"
#include "mask/refusal.hpp"
#include "reduce/column_sums.hpp"

namespace sparsedrop {
namespace {

// Whether the current device runs the kernel with clusters: its code has to be of 9.0 or later,
// which what a driver compiles from older PTX is not.
template <class Element>
cudaError_t find_clusters(bool* has_clusters) {
  static DeviceBits known;
  static DeviceBits with_clusters;
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) {
    return status;
  }
  if (!known.has(device)) {
    cudaFuncAttributes attributes{};
    status = cudaFuncGetAttributes(&attributes, column_sum::cluster_kernel<Element>);
    if (status != cudaSuccess) {
      return status;
    }
    if (attributes.ptxVersion >= 90) {
      with_clusters.add(device);
    }
    known.add(device);
  }
  *has_clusters = with_clusters.has(device);
  return cudaSuccess;
}

template <class Element>
cudaError_t launch_sums(column_sum::Arguments const& args, cudaStream_t stream) {
  bool has_clusters = false;
  cudaError_t const status = find_clusters<Element>(&has_clusters);
  if (status != cudaSuccess) {
    return status;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = column_sum::kShares;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(has_clusters ? column_sum::kShares : 1,
                        unsigned(ceil_div(args.cols, column_sum::kStripe)));
  config.blockDim = dim3(column_sum::kThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = has_clusters ? 1 : 0;
  return has_clusters ? cudaLaunchKernelEx(&config, column_sum::cluster_kernel<Element>, args)
                      : cudaLaunchKernelEx(&config, column_sum::single_kernel<Element>, args);
}

}  // namespace

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, void* out, cudaStream_t stream) {
  bool const is_readable = matrix.data != nullptr && out != nullptr &&
                           reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
                           matrix.order == Order::row_major &&
                           matrix.ld % column_sum::kVector == 0 && cols % column_sum::kVector == 0;
  bool const is_legal = blocks_refusal(mask) == nullptr && words_refusal(mask) == nullptr;
  if (!is_readable || !is_legal || rows < 1 || cols < 1 || cols > kMaxSumColumns) {
    return cudaErrorInvalidValue;
  }
  MaskLines by_col{};
  if (is_mask(mask)) {
    by_col = {mask.col_words, mask_line_words(rows), mask.block_cols};
  }
  column_sum::Arguments const args{matrix.data, rows, cols, matrix.ld, by_col, out};
  switch (dtype) {
    case DataType::bf16:
      return launch_sums<__nv_bfloat16>(args, stream);
    case DataType::fp16:
      return launch_sums<__half>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
