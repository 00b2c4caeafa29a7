// What a launch needs of device memory, piece by piece.

#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsedrop {

// Hands out aligned pieces of a workspace; null workspaces only measure.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* const here = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (sizeof(T) * size_t(count) + 15) / 16 * 16;
    return here;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace sparsedrop
