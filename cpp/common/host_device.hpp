// Functions for the host, whose tests need no GPU, and for kernels.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPARSEDROP_HOST_DEVICE __host__ __device__ __forceinline__
#define SPARSEDROP_DEVICE __device__ __forceinline__
#else  // headers with device functions only are for nvcc
#define SPARSEDROP_HOST_DEVICE inline
#endif

namespace sparsedrop {

constexpr int kWarp = 32;  // threads

SPARSEDROP_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sparsedrop
