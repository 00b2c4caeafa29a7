// Sums of the columns of a masked matrix: the gradient of a bias.

#include "common/device_bits.hpp"
#include "mask/refusal.hpp"
#include "reduce/column_sums.hpp"

namespace sparsedrop {
namespace {

// Whether the current device runs the kernel with clusters: its code has to be of 9.0 or later,
// which what a driver compiles from older PTX is not.
template <class Element, class Out, bool kVectors>
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
    status = cudaFuncGetAttributes(&attributes, column_sum::cluster_kernel<Element, Out, kVectors>);
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

template <class Element, class Out, bool kVectors>
cudaError_t launch_sums(column_sum::Arguments args, cudaStream_t stream) {
  args.stripe = column_sum::stripe_of(args.cols, kVectors);
  bool has_clusters = false;
  cudaError_t const status = find_clusters<Element, Out, kVectors>(&has_clusters);
  if (status != cudaSuccess) {
    return status;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = column_sum::kShares;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(has_clusters ? column_sum::kShares : 1, unsigned(ceil_div(args.cols, args.stripe)));
  config.blockDim = dim3(column_sum::kThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = has_clusters ? 1 : 0;
  return has_clusters
             ? cudaLaunchKernelEx(&config, column_sum::cluster_kernel<Element, Out, kVectors>, args)
             : cudaLaunchKernelEx(&config, column_sum::single_kernel<Element, Out, kVectors>, args);
}

// `Narrow` is that of the matrix; the sums are of the same, or of fp32.
template <class Narrow>
cudaError_t sum_narrow(column_sum::Arguments const& args, bool is_fp32, cudaStream_t stream) {
  bool const has_vectors = reinterpret_cast<uintptr_t>(args.data) % 16 == 0 &&
                           args.ld % column_sum::kVector == 0 &&
                           args.cols % column_sum::kVector == 0;
  if (is_fp32) {
    return has_vectors ? launch_sums<Narrow, float, true>(args, stream)
                       : launch_sums<Narrow, float, false>(args, stream);
  }
  return has_vectors ? launch_sums<Narrow, Narrow, true>(args, stream)
                     : launch_sums<Narrow, Narrow, false>(args, stream);
}

}  // namespace

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, Sums const& out, cudaStream_t stream) {
  bool const is_fp32 = out.dtype == DataType::fp32;
  bool const is_writable = out.data != nullptr && (is_fp32 || out.dtype == dtype);
  bool const is_readable = matrix.data != nullptr && matrix.order == Order::row_major &&
                           (matrix.ld == 0 || matrix.ld >= cols);  // 0: one row again and again
  bool const is_legal = blocks_refusal(mask) == nullptr && words_refusal(mask) == nullptr;
  if (!is_writable || !is_readable || !is_legal || rows < 1 || cols < 1 || cols > kMaxSumColumns) {
    return cudaErrorInvalidValue;
  }
  MaskLines by_col{};
  if (is_mask(mask)) {
    by_col = {mask.col_words, mask_line_words(rows), mask.block_cols};
  }
  column_sum::Arguments const args{matrix.data,     rows,      cols, matrix.ld, by_col, 0, out.data,
                                   out.accumulates, out.factor};
  switch (dtype) {
    case DataType::bf16:
      return sum_narrow<__nv_bfloat16>(args, is_fp32, stream);
    case DataType::fp16:
      return sum_narrow<__half>(args, is_fp32, stream);
    case DataType::fp32:
      return launch_sums<float, float, false>(args, stream);
    case DataType::fp64:
      return is_fp32 ? cudaErrorInvalidValue : launch_sums<double, double, false>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
