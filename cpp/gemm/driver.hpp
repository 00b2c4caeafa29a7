// The one driver function that is called: CUTLASS encodes tensor maps with it, three for a launch.
// CUTLASS looks it up at every call, which costs as much as the encoding; here it is looked up once.
// To be included before any header of CuTe.

#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cutlass/cuda_host_adapter.hpp>

namespace sparsedrop {

inline PFN_cuTensorMapEncodeTiled_v12000 find_cuTensorMapEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  cudaError_t const status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
  bool const is_found = status == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return is_found ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function) : nullptr;
}

template <class... Args>
CUresult call_cuTensorMapEncodeTiled(Args... args) {
  static auto const function = find_cuTensorMapEncodeTiled();
  return function == nullptr ? CUDA_ERROR_NOT_FOUND : function(args...);
}

}  // namespace sparsedrop

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) ::sparsedrop::call_##function
