// Defined in launch.hpp, and instantiated once for each element type and layout in instance.cu.

#pragma once

#include "gemm/product.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop::sm80 {

template <class Element, bool AKMajor, bool BKMajor>
cudaError_t launch_tile(int tile, Product const& product, Schedule const& schedule,
                        cudaStream_t stream);

}  // namespace sparsedrop::sm80
