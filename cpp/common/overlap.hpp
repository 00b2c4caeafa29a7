// Launches whose first instructions may run under the end of the launch before them in the stream.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace sparsedrop {

struct LaunchShape {
  unsigned ctas;
  unsigned threads;
  size_t shared_bytes;
  cudaStream_t stream;
};

// The kernel calls cudaGridDependencySynchronize() before it touches global memory.
template <class Params>
cudaError_t launch_overlapped(void (*kernel)(Params), LaunchShape const& shape,
                              Params const& params) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.ctas);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace sparsedrop
