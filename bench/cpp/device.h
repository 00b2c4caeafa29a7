// Device memory, and calls captured once and timed as replays.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cases.h"

namespace sparsedrop::bench {

// Throws std::runtime_error with CUDA's reason and what failed.
void check(cudaError_t status, char const* what);

// Bytes on the current device.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Elements of a normal distribution in bf16 or fp32: a GPU runs zeros faster than it should. They
// repeat every million elements.
Buffer normal(DataType type, int64_t elements, uint32_t seed);

// The bit words of a mask, built on the device from its grid.
class DeviceMask {
 public:
  explicit DeviceMask(Grid const& grid);
  Mask mask() const;

 private:
  int32_t block_rows_;
  int32_t block_cols_;
  Buffer row_words_;
  Buffer col_words_;
};

// Calls on a stream, captured as one CUDA graph: no host in the figure.
class Replay {
 public:
  // Runs every call once, then captures all of them.
  Replay(std::vector<std::function<void(cudaStream_t)>> const& calls, cudaStream_t stream);
  ~Replay();
  Replay(Replay const&) = delete;
  Replay& operator=(Replay const&) = delete;

  // Launches between two events.
  void launch(cudaStream_t stream);
  // Of the last launch, once the stream has passed it.
  double seconds() const;

 private:
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace sparsedrop::bench
