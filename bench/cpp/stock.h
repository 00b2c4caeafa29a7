// The dense product by stock CUTLASS kernels of 8.0: what the kernels of sm80 are compared to.

#pragma once

#include <memory>
#include <vector>

#include "cublas.h"

namespace sparsedrop::bench {

// One for each of its tiles: the fastest of them counts.
std::vector<std::unique_ptr<DenseProduct>> stock_products(DataType type);

}  // namespace sparsedrop::bench
