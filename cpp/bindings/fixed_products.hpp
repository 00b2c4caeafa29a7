// Dense products whose extents come again, by the cuBLASLt that torch has loaded: what it needs to
// know is looked up once, and a bias is added as the result is stored. A call then costs the host
// little more than the launch.

#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "bindings/blas.hpp"

namespace sparsedrop {

// Looks up that release of cuBLASLt, if it is loaded in this process.
void load_blas_lt(int release);

// The products of one step of a program. One call at a time, which Python's lock sees to.
class FixedProducts {
 public:
  // `handle` is torch's of cuBLAS, which stands for one of cuBLASLt. Parts of sums are added up in
  // fp32.
  explicit FixedProducts(void* handle);
  ~FixedProducts();

  // Looks up how to multiply so; false where cuBLASLt is not loaded or has no way. What the
  // product's addresses point to is not looked at; it is for such that are multiples of as much.
  bool prepare(DenseProduct const& of);

  // What `prepare` found to be needed; other products make do with it.
  size_t workspace_bytes() const { return workspace_bytes_; }

  // False, and nothing done, where there is no way; std::runtime_error with cuBLASLt's number for
  // it where the product fails.
  bool run(DenseProduct const& of, void* workspace, cudaStream_t stream);

 private:
  struct Plan;

  Plan const* find(DenseProduct const& of);
  Plan const* add(DenseProduct const& of, size_t workspace_limit);

  void* handle_;
  size_t workspace_bytes_ = 0;
  std::vector<std::unique_ptr<Plan>> plans_;
};

}  // namespace sparsedrop
