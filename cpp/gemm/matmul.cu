// The entry points: what can run, and the dispatch to the instance that runs it.

#include "common/workspace.hpp"
#include "gemm/product.hpp"
#include "gemm/sm90/config.hpp"
#include "schedule/ordering.hpp"

namespace sparsedrop {
namespace {

constexpr int kTiles = cute::tuple_size_v<TileConfigs>;

template <size_t... I>
constexpr auto list_tiles(cute::index_sequence<I...>) {
  return cute::array<Tile, kTiles>{{cute::tuple_element_t<I, TileConfigs>::kTile...}};
}

constexpr auto kTileList = list_tiles(cute::make_index_sequence<kTiles>{});

// What the copy engine and the epilogue's vectors need of a matrix.
char const* matrix_refusal(void const* data, int64_t ld, int64_t contiguous) {
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return "a matrix is null or not 16-byte aligned";
  }
  if (ld < contiguous || ld % 8 != 0 || ld >= int64_t(1) << 39) {
    return "a leading dimension is no multiple of 8, or out of range";
  }
  return contiguous % 8 != 0 ? "a contiguous extent is no multiple of 8" : nullptr;
}

bool lines_fit(Lines const& lines, int32_t tile_extent) {
  return lines.words == nullptr || lines.block.value() % tile_extent == 0;
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

cudaError_t count_sms(int32_t* sms) {
  int device = 0;
  cudaError_t const status = cudaGetDevice(&device);
  return status != cudaSuccess
             ? status
             : cudaDeviceGetAttribute(sms, cudaDevAttrMultiProcessorCount, device);
}

// Where the sums of a split product lie in a workspace; a null one is only measured.
PartialSums lay_out_sums(void* workspace, Product const& product, Choice choice) {
  Tile const t = tile(choice.tile);
  PartialSums sums;
  sums.parts = choice.parts;
  // One CTA a tile: none is split slot by slot.
  sums.tiles =
      full_grid(product.m, product.n, product.k, t, block_of(product.b_lines)).records(1).count();
  int64_t const leaving = int64_t(sums.tiles) * (sums.parts - 1);
  Carver carver(workspace);
  sums.data = carver.take<float>(leaving * t.m * t.n);
  sums.flags = carver.take<unsigned long long>(leaving * kConsumerWarpGroups);
  sums.bytes = carver.used();
  return sums;
}

bool is_aligned(void const* workspace) {
  return workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % 16 == 0;
}

char const* parts_refusal(Problem const& problem, Choice choice) {
  static_assert(kMaxParts == 8 && kMostSplitN == 128, "the sentences say so");
  if (choice.parts < 1 || choice.parts > kMaxParts) {
    return "a tile has 1 to 8 parts";
  }
  if (choice.parts == 1) {
    return nullptr;
  }
  Tile const t = tile(choice.tile);
  if (problem.d_mask.block_rows != 0 || problem.activation != Activation::none ||
      t.n > kMostSplitN) {
    return "tiles are split along k without a mask on D and an activation, and up to 128 wide";
  }
  int64_t const slots =
      choice.swap ? max_records(problem.n, problem.m, t) : max_records(problem.m, problem.n, t);
  return slots * choice.parts > kMostSplitSlots ? "there are too many tiles to split them along k"
                                                : nullptr;
}

// Makes the list, where the kernel cannot do without one.
cudaError_t list_tiles(Product const& product, Tile const& tile, int32_t ctas, void* workspace,
                       TileList* list, cudaStream_t stream) {
  FullGrid const grid = full_grid(product.m, product.n, product.k, tile, block_of(product.b_lines));
  if (Ordering::suits(product.b_lines.words != nullptr, product.d_lines.words != nullptr, grid)) {
    return cudaSuccess;
  }
  if (!is_aligned(workspace)) {
    return cudaErrorInvalidValue;
  }
  TileListRequest const request{product.m,       product.n,       product.k, product.a_lines,
                                product.b_lines, product.d_lines, tile,      ctas};
  *list = lay_out(workspace, request);
  return make_tile_list(request, *list, stream);
}

}  // namespace

int tile_count() { return kTiles; }

Tile tile(int id) { return kTileList[size_t(id)]; }

char const* refusal(Problem const& problem, Choice choice) {
  if (choice.tile < 0 || choice.tile >= kTiles) {
    return "there is no tile of this id";
  }
  // Tiles reach past the last row, and rows are counted in 32 bits.
  int64_t const extents[] = {problem.m, problem.n, problem.k};
  for (int64_t const extent : extents) {
    if (extent < 1 || extent > INT32_MAX - 256) {
      return "an extent is below 1 or above 2^31 - 257";
    }
  }
  if (char const* const reason = parts_refusal(problem, choice)) {
    return reason;
  }
  if (problem.dtype != DataType::bf16 && problem.dtype != DataType::fp16) {
    return "the data type is unknown";
  }
  if (problem.activation < Activation::none || problem.activation > Activation::silu) {
    return "the activation is unknown";
  }
  if (problem.pre_activation != nullptr) {
    if (problem.activation != Activation::gelu && problem.activation != Activation::silu) {
      return "a pre-activation is stored for gelu and silu only";
    }
    if (problem.pre_activation == problem.d) {
      return "the pre-activation and D are in one place";
    }
    if (char const* const reason =
            matrix_refusal(problem.pre_activation, problem.d_ld, problem.n)) {
      return reason;
    }
  }
  Matrix const& a = problem.a;
  Matrix const& b = problem.b;
  char const* const of_matrices[] = {
      matrix_refusal(a.data, a.ld, a.order == Order::row_major ? problem.k : problem.m),
      matrix_refusal(b.data, b.ld, b.order == Order::row_major ? problem.n : problem.k),
      matrix_refusal(problem.d, problem.d_ld, problem.n)};
  for (char const* const reason : of_matrices) {
    if (reason != nullptr) {
      return reason;
    }
  }
  if (reinterpret_cast<uintptr_t>(problem.bias) % 16 != 0) {
    return "the bias is not 16-byte aligned";
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

size_t workspace_bytes(Problem const& problem, Choice choice) {
  if (choice.tile < 0 || choice.tile >= kTiles || parts_refusal(problem, choice) != nullptr) {
    return 0;
  }
  if (choice.parts > 1) {
    return lay_out_sums(nullptr, orient(problem, choice.swap), choice).bytes;
  }
  TileListRequest request{};
  request.m = choice.swap ? problem.n : problem.m;
  request.n = choice.swap ? problem.m : problem.n;
  request.tile = tile(choice.tile);
  Mask const& b_mask = choice.swap ? problem.a_mask : problem.b_mask;
  // Whether there is a list does not depend on what tiles share.
  FullGrid const grid = full_grid(request.m, request.n, problem.k, request.tile, 0);
  bool const needs_list =
      !Ordering::suits(b_mask.block_rows != 0, problem.d_mask.block_rows != 0, grid);
  return needs_list ? lay_out(nullptr, request).bytes : 0;
}

cudaError_t matmul(Problem const& problem, Choice choice, void* workspace, cudaStream_t stream) {
  if (refusal(problem, choice) != nullptr) {
    return cudaErrorInvalidValue;
  }
  Product product = orient(problem, choice.swap);
  Tile const chosen = tile(choice.tile);
  int32_t ctas = 0;
  TileList list{};
  if (choice.parts > 1) {
    if (!is_aligned(workspace)) {
      return cudaErrorInvalidValue;
    }
    product.sums = lay_out_sums(workspace, product, choice);
    ctas = product.sums.tiles * product.sums.parts;
  } else {
    int32_t sms = 0;
    cudaError_t status = count_sms(&sms);
    if (status != cudaSuccess) {
      return status;
    }
    int64_t const records = max_records(product.m, product.n, chosen);
    ctas = int32_t(records > sms ? sms : records);
    status = list_tiles(product, chosen, ctas, workspace, &list, stream);
    if (status != cudaSuccess) {
      return status;
    }
  }
  switch (problem.dtype) {
    case DataType::bf16:
      return dispatch_layout<cutlass::bfloat16_t>(choice.tile, product, list, ctas, stream);
    case DataType::fp16:
      return dispatch_layout<cutlass::half_t>(choice.tile, product, list, ctas, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsedrop
