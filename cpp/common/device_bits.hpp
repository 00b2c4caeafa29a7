// One bit for each of the first 64 GPUs: what is found out once and never changes.

#pragma once

#include <atomic>
#include <cstdint>

namespace sparsedrop {

class DeviceBits {
 public:
  bool has(int device) const {
    return (bits_.load(std::memory_order_relaxed) & bit_of(device)) != 0;
  }
  void add(int device) { bits_.fetch_or(bit_of(device), std::memory_order_relaxed); }

 private:
  static uint64_t bit_of(int device) { return device < 64 ? uint64_t(1) << device : 0; }

  std::atomic<uint64_t> bits_{0};
};

}  // namespace sparsedrop
