// A cuBLASLt for tests: it multiplies fp32 on the host as its descriptors say, and fails when it is
// told to. Loaded as release 99.

#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsedrop {

constexpr int kFakeRelease = 99;

struct FakeBlasLt {
  int find_status = 0;
  int multiply_status = 0;
  int found = 1;  // how many ways there are, of 1
  size_t wanted_workspace = 0;

  // What was asked last, and how often.
  int finds = 0;
  int multiplies = 0;
  void* handle = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  size_t workspace_limit = 0;
  uint32_t alignment = 0;
  uint32_t reductions = 0;
  int compute_type = 0;

  int alive = 0;  // descriptors that were made and not destroyed
};

FakeBlasLt& fake_blas_lt();

}  // namespace sparsedrop
