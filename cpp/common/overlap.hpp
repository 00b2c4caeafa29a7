// Launches whose first instructions may run under the end of the launch before them in the stream:
// of kernels whose code is of compute capability 9.0 or later. Others are launched one after the
// other.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "common/host_device.hpp"

namespace sparsedrop {

struct LaunchShape {
  unsigned ctas;
  unsigned threads;
  size_t shared_bytes;
  cudaStream_t stream;
  bool overlaps;  // the code is of 9.0 or later, and the kernel calls wait_for_launch_before()
};

template <class Params>
cudaError_t launch(void (*kernel)(Params), LaunchShape const& shape, Params const& params) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.ctas);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = &overlap;
  config.numAttrs = shape.overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SPARSEDROP_OVERLAPS 1
#else
#define SPARSEDROP_OVERLAPS 0
#endif

// Before global memory is touched: what the launch before wrote is there, and what it read is free.
SPARSEDROP_DEVICE void wait_for_launch_before() {
#if SPARSEDROP_OVERLAPS
  cudaGridDependencySynchronize();
#endif
}

// The CTAs of the launch behind this one take the SMs that are free, and wait for this grid's end.
SPARSEDROP_DEVICE void let_next_launch_start() {
#if SPARSEDROP_OVERLAPS
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace sparsedrop
