// The dense product by cuBLAS, where the benchmarks are built with it.

#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "sparsedrop/sparsedrop.h"

namespace sparsedrop::bench {

class DenseProduct {
 public:
  virtual ~DenseProduct() = default;
  // D = A B; masks, bias and activation of the problem are left out.
  virtual void operator()(Problem const& problem, cudaStream_t stream) = 0;
};

// Null in a build without cuBLAS.
std::unique_ptr<DenseProduct> dense_product();

}  // namespace sparsedrop::bench
