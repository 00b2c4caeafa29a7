// All tiles for one element type and one layout. CMake compiles this file once for each, with
//   SPARSEDROP_ELEMENT    the type of A and B
//   SPARSEDROP_A_K_MAJOR, SPARSEDROP_B_K_MAJOR    0 or 1

#include "gemm/sm80/launch.hpp"

namespace sparsedrop::sm80 {

template cudaError_t launch_tile<SPARSEDROP_ELEMENT, SPARSEDROP_A_K_MAJOR, SPARSEDROP_B_K_MAJOR>(
    int tile, Product const& product, Schedule const& schedule, cudaStream_t stream);

}  // namespace sparsedrop::sm80
