// Device memory for tests; the end of the process frees it.

#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <vector>

namespace sparsedrop {

template <class T>
T* to_device(std::vector<T> const& values) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, sizeof(T) * values.size()), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(data, values.data(), sizeof(T) * values.size(), cudaMemcpyHostToDevice),
            cudaSuccess);
  return static_cast<T*>(data);
}

template <class T>
std::vector<T> to_host(T const* data, size_t count) {
  std::vector<T> values(count);
  EXPECT_EQ(cudaMemcpy(values.data(), data, sizeof(T) * count, cudaMemcpyDeviceToHost),
            cudaSuccess);
  return values;
}

}  // namespace sparsedrop
