// All tiles for one element type and one layout. CMake compiles this file once for each, with
//   SPARSEDROP_ELEMENT    the type of A, B and D
//   SPARSEDROP_A_K_MAJOR, SPARSEDROP_B_K_MAJOR, SPARSEDROP_N_MAJOR    0 or 1

#include "gemm/launch.hpp"

namespace sparsedrop {

namespace {

constexpr Major major_of(bool k_major) { return k_major ? Major::K : Major::MN; }

using InstanceLayouts = Layouts<major_of(SPARSEDROP_A_K_MAJOR), major_of(SPARSEDROP_B_K_MAJOR),
                                major_of(SPARSEDROP_N_MAJOR)>;

template <size_t... I>
cudaError_t launch_one_of(int tile, Product const& product, TileList const& list, int32_t ctas,
                          cudaStream_t stream, cute::index_sequence<I...>) {
  cudaError_t status = cudaErrorInvalidValue;
  auto try_config = [&](auto config, int id) {
    if (id == tile) {
      using Config = decltype(config);
      status =
          launch<Traits<SPARSEDROP_ELEMENT, Config, InstanceLayouts>>(product, list, ctas, stream);
    }
  };
  (try_config(cute::tuple_element_t<I, TileConfigs>{}, int(I)), ...);
  return status;
}

}  // namespace

template <>
cudaError_t launch_tile<SPARSEDROP_ELEMENT, SPARSEDROP_A_K_MAJOR, SPARSEDROP_B_K_MAJOR,
                        SPARSEDROP_N_MAJOR>(int tile, Product const& product, TileList const& list,
                                            int32_t ctas, cudaStream_t stream) {
  return launch_one_of(tile, product, list, ctas, stream,
                       cute::make_index_sequence<cute::tuple_size_v<TileConfigs>>{});
}

}  // namespace sparsedrop
