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
  FixedProducts();
  ~FixedProducts();

  // Looks up how to multiply so; false where cuBLASLt is not loaded or has no way. What the
  // product's addresses point to is not looked at; it is for such that are multiples of as much.
  // `handle` is torch's of cuBLAS, which stands for one of cuBLASLt.
  bool prepare(DenseProduct const& of, void* handle);

  // What `prepare` found to be needed; other products make do with it.
  size_t workspace_bytes() const { return workspace_bytes_; }

  // Parts of sums are added up in fp32. False where there is no way, or the one that was found
  // fails: the result is then to be made by another. std::runtime_error with cuBLASLt's number for
  // it where something may have been added to the result.
  bool run(DenseProduct const& of, void* handle, void* workspace, cudaStream_t stream);

 private:
  struct Plan;

  // Null where cuBLASLt cannot say at the moment, or as many are kept as there may be.
  Plan* find(DenseProduct const& of, void* handle);
  Plan* add(DenseProduct const& of, void* handle, size_t workspace_limit);

  size_t workspace_bytes_ = 0;
  std::vector<std::unique_ptr<Plan>> plans_;
};

}  // namespace sparsedrop
