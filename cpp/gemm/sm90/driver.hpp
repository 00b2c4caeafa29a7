// The driver's functions that are called: CUTLASS encodes tensor maps with one, three for a launch.
// CUTLASS looks it up at every call, which costs as much as the encoding; here it is looked up
// once. And CUTLASS goes on where it fails, with a map of anything. To be included before any
// header of CuTe.

#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <atomic>

#include <cutlass/cuda_host_adapter.hpp>

namespace sparsedrop::sm90 {

inline void* look_up(char const* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaError_t const status =
      cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
#else
  cudaError_t const status = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? address : nullptr;
}

// Null where the driver has no such function.
template <class Function>
Function find(std::atomic<Function>& known, char const* name) {
  Function function = known.load(std::memory_order_relaxed);
  if (function == nullptr) {
    function = reinterpret_cast<Function>(look_up(name));
    known.store(function, std::memory_order_relaxed);
  }
  return function;
}

using EncodeTiled = PFN_cuTensorMapEncodeTiled_v12000;
using GetCurrent = PFN_cuCtxGetCurrent_v4000;

inline EncodeTiled find_encode_tiled() {
  static std::atomic<EncodeTiled> known{nullptr};
  return find(known, "cuTensorMapEncodeTiled");
}

// The driver encodes for the current context, and a thread has none before its first call of the
// runtime that needs one: in a backward pass of torch, that may be this launch.
inline cudaError_t bind_context(int device) {
  static std::atomic<GetCurrent> known{nullptr};
  GetCurrent const get_current = find(known, "cuCtxGetCurrent");
  CUcontext context = nullptr;
  if (get_current == nullptr || get_current(&context) != CUDA_SUCCESS) {
    return cudaErrorNotSupported;
  }
  return context != nullptr ? cudaSuccess : cudaSetDevice(device);
}

// The first failure of this thread's encodings since it was last set to CUDA_SUCCESS.
inline CUresult& encoding_status() {
  static thread_local CUresult status = CUDA_SUCCESS;
  return status;
}

template <class... Args>
CUresult call_cuTensorMapEncodeTiled(Args... args) {
  EncodeTiled const function = find_encode_tiled();
  CUresult const status = function == nullptr ? CUDA_ERROR_NOT_FOUND : function(args...);
  if (encoding_status() == CUDA_SUCCESS) {
    encoding_status() = status;
  }
  return status;
}

}  // namespace sparsedrop::sm90

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) ::sparsedrop::sm90::call_##function
