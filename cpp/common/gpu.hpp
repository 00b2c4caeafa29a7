// What is asked of the current GPU before a launch.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sparsedrop {

struct Gpu {
  int32_t sms;
  // Shared memory in bytes: of an SM, what one CTA may have of it, and what the system takes of it
  // for each CTA.
  int32_t shared_per_sm;
  int32_t shared_per_cta;
  int32_t shared_reserved;
};

inline cudaError_t read_gpu(Gpu* gpu) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  struct {
    int32_t* value;
    cudaDeviceAttr attribute;
  } const wanted[] = {
      {&gpu->sms, cudaDevAttrMultiProcessorCount},
      {&gpu->shared_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
      {&gpu->shared_per_cta, cudaDevAttrMaxSharedMemoryPerBlockOptin},
      {&gpu->shared_reserved, cudaDevAttrReservedSharedMemoryPerBlock},
  };
  for (auto const& fact : wanted) {
    if (status == cudaSuccess) {
      status = cudaDeviceGetAttribute(fact.value, fact.attribute, device);
    }
  }
  return status;
}

}  // namespace sparsedrop
