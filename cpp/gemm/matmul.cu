// The entry points: what can run, and the dispatch to the instance that runs it.

#include <type_traits>

#include "gemm/config.hpp"
#include "gemm/own_order.hpp"
#include "gemm/product.hpp"

namespace sparsedrop {
namespace {

constexpr int kTiles = cute::tuple_size_v<TileConfigs>;

template <size_t... I>
constexpr auto list_tiles(cute::index_sequence<I...>) {
  return cute::array<Tile, kTiles>{{cute::tuple_element_t<I, TileConfigs>::kTile...}};
}

constexpr auto kTileList = list_tiles(cute::make_index_sequence<kTiles>{});

bool aligned(void const* data, int64_t ld) {
  // The copy engine takes 16-byte aligned addresses and strides.
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ld % 8 == 0;
}

bool lines_fit(Lines const& lines, int32_t tile_extent) {
  return lines.words == nullptr || lines.block % tile_extent == 0;
}

bool block_fits(Mask const& mask) {
  return mask.row_words == nullptr ||
         (mask.col_words != nullptr && mask.block_rows > 0 && mask.block_cols > 0 &&
          mask.block_rows % kMaskUnit == 0 && mask.block_cols % kMaskUnit == 0);
}

// Calls launch_tile<Element, AKMajor, BKMajor, NMajor> with the product's own values.
template <class Element, bool... Known>
cudaError_t dispatch_layout(int tile, Product const& product, TileList const& list, int32_t ctas,
                            cudaStream_t stream) {
  if constexpr (sizeof...(Known) == 3) {
    return launch_tile<Element, Known...>(tile, product, list, ctas, stream);
  } else {
    bool const values[] = {product.a.k_major, product.b.k_major, product.n_major};
    return values[sizeof...(Known)]
               ? dispatch_layout<Element, Known..., true>(tile, product, list, ctas, stream)
               : dispatch_layout<Element, Known..., false>(tile, product, list, ctas, stream);
  }
}

// What the list of tiles needs to know, on the current device.
cudaError_t list_request(Product const& product, Tile tile, TileListRequest* request) {
  int device = 0;
  int sms = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  }
  int64_t const records = max_records(product.m, product.n, tile);
  auto const ctas = int32_t(records > sms ? sms : records);
  *request = {product.m,       product.n,       product.k, product.a_lines,
              product.b_lines, product.d_lines, tile,      ctas};
  return status;
}

bool needs_list(Product const& product, Tile tile) {
  FullGrid const grid = full_grid(product.m, product.n, product.k, tile);
  return !OwnOrder::suits(product.b_lines, product.d_lines, grid);
}

}  // namespace

int tile_count() { return kTiles; }

Tile tile(int id) { return kTileList[size_t(id)]; }

char const* refusal(Problem const& problem, Choice choice) {
  if (choice.tile < 0 || choice.tile >= kTiles) {
    return "there is no tile of this id";
  }
  int64_t const extents[] = {problem.m, problem.n, problem.k};
  for (int64_t const extent : extents) {
    if (extent < 1 || extent > INT32_MAX - 256) {
      return "an extent is below 1 or does not fit 32 bits";
    }
  }
  if (!aligned(problem.a.data, problem.a.ld) || !aligned(problem.b.data, problem.b.ld) ||
      !aligned(problem.d, problem.d_ld)) {
    return "a base pointer is not 16-byte aligned or a leading dimension is no multiple of 8";
  }
  if (!block_fits(problem.a_mask) || !block_fits(problem.b_mask) || !block_fits(problem.d_mask)) {
    return "a block extent is no multiple of 64";
  }
  Tile const t = tile(choice.tile);
  Product const product = orient(problem, choice.swap);
  Mask const& d_mask = problem.d_mask;
  int32_t const d_block_along_n = choice.swap ? d_mask.block_rows : d_mask.block_cols;
  if (!lines_fit(product.a_lines, t.m) || !lines_fit(product.b_lines, t.n) ||
      !lines_fit(product.d_lines, t.m) ||
      (d_mask.row_words != nullptr && d_block_along_n % t.slot_n != 0)) {
    return "a block is not a whole number of tiles";
  }
  return nullptr;
}

size_t workspace_bytes(int64_t m, int64_t n, Choice choice) {
  TileListRequest request{};
  request.m = choice.swap ? n : m;
  request.n = choice.swap ? m : n;
  request.tile = tile(choice.tile);
  return lay_out(nullptr, request).bytes;
}

cudaError_t matmul(Problem const& problem, Choice choice, void* workspace, cudaStream_t stream) {
  if (refusal(problem, choice) != nullptr) {
    return cudaErrorInvalidValue;
  }
  Product const product = orient(problem, choice.swap);
  TileListRequest request{};
  cudaError_t status = list_request(product, tile(choice.tile), &request);
  if (status != cudaSuccess) {
    return status;
  }
  TileList list{};
  if (needs_list(product, request.tile)) {
    list = lay_out(workspace, request);
    status = make_tile_list(request, list, stream);
    if (status != cudaSuccess) {
      return status;
    }
  }
  switch (problem.dtype) {
    case DataType::bf16:
      return dispatch_layout<cutlass::bfloat16_t>(choice.tile, product, list, request.ctas, stream);
    case DataType::fp16:
      return dispatch_layout<cutlass::half_t>(choice.tile, product, list, request.ctas, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
