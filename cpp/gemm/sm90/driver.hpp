// The one driver function that is called: CUTLASS encodes tensor maps with it, three for a launch.
// CUTLASS looks it up at every call, which costs as much as the encoding; here it is looked up
// once. To be included before any header of CuTe.

#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <atomic>

#include <cutlass/cuda_host_adapter.hpp>

namespace sparsedrop::sm90 {

using EncodeTiled = PFN_cuTensorMapEncodeTiled_v12000;

// Null where the driver has no such function.
inline EncodeTiled find_encode_tiled() {
  static std::atomic<EncodeTiled> known{nullptr};
  EncodeTiled function = known.load(std::memory_order_relaxed);
  if (function == nullptr) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t const status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address,
                                                                12000, cudaEnableDefault, &found);
#else
    cudaError_t const status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &address, cudaEnableDefault, &found);
#endif
    if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) {
      function = reinterpret_cast<EncodeTiled>(address);
      known.store(function, std::memory_order_relaxed);
    }
  }
  return function;
}

template <class... Args>
CUresult call_cuTensorMapEncodeTiled(Args... args) {
  EncodeTiled const function = find_encode_tiled();
  return function == nullptr ? CUDA_ERROR_NOT_FOUND : function(args...);
}

}  // namespace sparsedrop::sm90

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) ::sparsedrop::sm90::call_##function
