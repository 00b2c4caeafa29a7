// The entry points: what can run, and the way to the architecture that runs it.

#include "common/host_device.hpp"
#include "gemm/architecture.hpp"
#include "gemm/product.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop {
namespace {

// Best first.
constexpr Kernels const* kArchitectures[] = {&sm90::kKernels};

// Null where this build has no kernels of that architecture.
Kernels const* find(Architecture architecture) {
  for (Kernels const* kernels : kArchitectures) {
    if (kernels->architecture == architecture) {
      return kernels;
    }
  }
  return nullptr;
}

// What 16-byte loads and stores need of a matrix.
char const* matrix_refusal(void const* data, int64_t ld, int64_t contiguous, DataType dtype) {
  int64_t const unit = 16 / element_bytes(dtype);
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return "a matrix is null or not 16-byte aligned";
  }
  if (ld < contiguous || ld % unit != 0 || ld >= int64_t(1) << 39) {
    return "a leading dimension is no multiple of 8, or out of range";
  }
  return contiguous % unit != 0 ? "a contiguous extent is no multiple of 8" : nullptr;
}

char const* mask_refusal(Mask const& mask) {
  if (!is_mask(mask)) {
    return mask.row_words != nullptr || mask.col_words != nullptr ? "a mask has words but no blocks"
                                                                  : nullptr;
  }
  if (mask.block_rows <= 0 || mask.block_cols <= 0 || mask.block_rows % kMaskUnit != 0 ||
      mask.block_cols % kMaskUnit != 0) {
    return "a block extent is no multiple of 64";
  }
  // Without words its dropped blocks would count as live.
  return mask.row_words == nullptr || mask.col_words == nullptr ? "a mask has blocks but no words"
                                                                : nullptr;
}

char const* activation_refusal(Problem const& problem) {
  if (problem.activation < Activation::none || problem.activation > Activation::silu) {
    return "the activation is unknown";
  }
  if (problem.pre_activation == nullptr) {
    return nullptr;
  }
  if (problem.activation != Activation::gelu && problem.activation != Activation::silu) {
    return "a pre-activation is stored for gelu and silu only";
  }
  if (problem.pre_activation == problem.d) {
    return "the pre-activation and D are in one place";
  }
  return matrix_refusal(problem.pre_activation, problem.d_ld, problem.n, problem.dtype);
}

char const* split_refusal(Product const& product, Tile const& tile, int split_k,
                          Limits const& limits) {
  if (split_k < 1 || split_k > limits.max_split_k) {
    return "a tile is split along k into 1 to 8";
  }
  if (split_k == 1) {
    return nullptr;
  }
  if (product.d_lines.exists() || product.activation != Activation::none ||
      tile.n > limits.max_split_n) {
    return "tiles are split along k without a mask on D and an activation, and up to 128 wide";
  }
  return max_records(product.m, product.n, tile) * split_k > limits.max_split_slots
             ? "there are too many tiles to split them along k"
             : nullptr;
}

// Inside a block the list of K tiles is one and the same, so a tile may not cross its border.
char const* tile_refusal(Product const& product, Tile const& tile) {
  auto const fit = [](MaskLines const& lines, int32_t extent) {
    return !lines.exists() || lines.block.value() % extent == 0;
  };
  bool const all_fit = fit(product.a_lines, tile.m) && fit(product.b_lines, tile.n) &&
                       fit(product.d_lines, tile.m) && product.d_block_n % tile.slot_n == 0;
  return all_fit ? nullptr : "a block is not a whole number of tiles";
}

ScheduleRequest request_for(Product const& product, KernelTile const& tile, int split_k) {
  return {
      product.m,       product.n,       product.k, element_bytes(product.dtype), product.a_lines,
      product.b_lines, product.d_lines, tile.tile, tile.has_parallel_slots,      split_k};
}

cudaError_t count_sms(int32_t* sms) {
  int device = 0;
  cudaError_t const status = cudaGetDevice(&device);
  return status != cudaSuccess
             ? status
             : cudaDeviceGetAttribute(sms, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace

int architecture_count() { return int(sizeof(kArchitectures) / sizeof(kArchitectures[0])); }

Architecture architecture(int i) { return kArchitectures[i]->architecture; }

char const* name(Architecture architecture) { return find(architecture)->name; }

bool runs_on(Architecture architecture, int major, int minor) {
  return find(architecture)->runs_on(major, minor);
}

Limits limits(Architecture architecture) { return find(architecture)->limits; }

int tile_count(Architecture architecture) { return find(architecture)->tile_count; }

Tile tile(Architecture architecture, int id) { return find(architecture)->tiles[id].tile; }

char const* refusal(Problem const& problem, Choice choice) {
  Kernels const* const kernels = find(choice.architecture);
  if (kernels == nullptr) {
    return "this build has no kernels of this architecture";
  }
  if (choice.tile < 0 || choice.tile >= kernels->tile_count) {
    return "there is no tile of this id";
  }
  for (int64_t const extent : {problem.m, problem.n, problem.k}) {
    if (extent < 1 || extent > kMaxExtent) {
      return "an extent is below 1 or above 2^31 - 257";
    }
  }
  if (problem.dtype != DataType::bf16 && problem.dtype != DataType::fp16) {
    return "the data type is unknown";
  }
  Matrix const& a = problem.a;
  Matrix const& b = problem.b;
  bool const a_is_row_major = a.order == Order::row_major;
  bool const b_is_row_major = b.order == Order::row_major;
  char const* const of_operands[] = {
      activation_refusal(problem),
      matrix_refusal(a.data, a.ld, a_is_row_major ? problem.k : problem.m, problem.dtype),
      matrix_refusal(b.data, b.ld, b_is_row_major ? problem.n : problem.k, problem.dtype),
      matrix_refusal(problem.d, problem.d_ld, problem.n, problem.dtype),
      reinterpret_cast<uintptr_t>(problem.bias) % 16 != 0 ? "the bias is not 16-byte aligned"
                                                          : nullptr,
      mask_refusal(problem.a_mask),
      mask_refusal(problem.b_mask),
      mask_refusal(problem.d_mask)};
  for (char const* const reason : of_operands) {
    if (reason != nullptr) {
      return reason;
    }
  }
  Product const product = orient(problem, choice.swap);
  Tile const& tile = kernels->tiles[choice.tile].tile;
  char const* const reason = split_refusal(product, tile, choice.split_k, kernels->limits);
  return reason != nullptr ? reason : tile_refusal(product, tile);
}

size_t workspace_bytes(Problem const& problem, Choice choice) {
  Kernels const* const kernels = find(choice.architecture);
  if (kernels == nullptr || choice.tile < 0 || choice.tile >= kernels->tile_count) {
    return 0;
  }
  KernelTile const& tile = kernels->tiles[choice.tile];
  Product const product = orient(problem, choice.swap);
  if (split_refusal(product, tile.tile, choice.split_k, kernels->limits) != nullptr ||
      tile_refusal(product, tile.tile) != nullptr) {
    return 0;
  }
  return schedule_bytes(request_for(product, tile, choice.split_k), kernels->warp_groups);
}

cudaError_t matmul(Problem const& problem, Choice choice, void* workspace, cudaStream_t stream) {
  if (refusal(problem, choice) != nullptr) {
    return cudaErrorInvalidValue;
  }
  int32_t sms = 0;
  cudaError_t status = count_sms(&sms);
  if (status != cudaSuccess) {
    return status;
  }
  Kernels const& kernels = *find(choice.architecture);
  Product const product = orient(problem, choice.swap);
  Schedule schedule;
  status =
      make_schedule(request_for(product, kernels.tiles[choice.tile], choice.split_k),
                    {sms, kernels.warp_groups, kernels.overlaps, workspace, stream}, &schedule);
  return status != cudaSuccess ? status : kernels.launch(choice.tile, product, schedule, stream);
}

}  // namespace sparsedrop
