// What every call from Python does: addresses are integers, failures are sentences.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sparsedrop {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// `what` makes the text that stands before CUDA's own reason.
template <class What>
void check(cudaError_t status, What const& what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // the error is reported here; the next call starts clean
    throw std::runtime_error(what() + ": " + cudaGetErrorString(status));
  }
}

// Makes `device` current for one call.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), [] { return std::string("cudaGetDevice"); });
    if (before_ != device) {
      check(cudaSetDevice(device), [&] { return "cudaSetDevice(" + std::to_string(device) + ")"; });
      changed_ = true;
    }
  }
  ~OnDevice() {
    if (changed_) {
      cudaSetDevice(before_);
    }
  }
  OnDevice(OnDevice const&) = delete;
  OnDevice& operator=(OnDevice const&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace sparsedrop
