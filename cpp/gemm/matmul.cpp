// The entry points: what can run, and the way to the architecture that runs it.

#include <cstdint>
#include <initializer_list>

#include "common/gpu.hpp"
#include "gemm/architecture.hpp"
#include "gemm/product.hpp"
#include "mask/refusal.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop {
namespace {

// Best first. CMake says which are compiled in.
constexpr Kernels const* kArchitectures[] = {
#ifdef SPARSEDROP_HAS_SM90
    &sm90::kKernels,
#endif
#ifdef SPARSEDROP_HAS_SM80
    &sm80::kKernels,
#endif
};

// Null where this build has no kernels of that architecture.
Kernels const* find(Architecture architecture) {
  for (Kernels const* kernels : kArchitectures) {
    if (kernels->architecture == architecture) {
      return kernels;
    }
  }
  return nullptr;
}

char const* activation_refusal(Problem const& problem) {
  if (problem.activation < Activation::none || problem.activation > Activation::gelu_tanh) {
    return "the activation is unknown";
  }
  bool const is_late =
      problem.activation != Activation::none && problem.activation != Activation::relu;
  return problem.pre_activation != nullptr && !is_late
             ? "a pre-activation is stored for gelu, gelu_tanh and silu only"
             : nullptr;
}

// D in fp32, and what only that allows.
char const* wide_refusal(Problem const& problem) {
  if (!problem.d_is_fp32) {
    return problem.accumulates ? "a product is added to D in place in float32 only" : nullptr;
  }
  if (is_mask(problem.d_mask)) {
    return "D has a mask and is float32";
  }
  if (problem.activation != Activation::none) {
    return "D has an activation and is float32";
  }
  if (problem.bias != nullptr) {
    return "D has a bias and is float32";
  }
  bool const has_layout =
      problem.a.order == Order::col_major && problem.b.order == Order::row_major;
  return has_layout ? nullptr : "D is float32, but m is not contiguous in A, or n not in B";
}

char const* split_refusal(Product const& product, Tile const& tile, int split_k,
                          Limits const& limits) {
  if (split_k < 1 || split_k > limits.max_split_k) {
    return "split_k is below 1 or above the limit of the architecture";
  }
  if (split_k == 1) {
    return nullptr;
  }
  if (product.d_lines.exists() || product.activation != Activation::none ||
      tile.n > limits.max_split_n) {
    return "tiles are split along k without a mask on D and an activation, and if they are narrow";
  }
  return max_records(product.m, product.n, tile) * split_k > limits.max_split_slots
             ? "there are too many tiles to split them along k"
             : nullptr;
}

// Inside a block the K list is one and the same, so a tile may not cross its border.
char const* tile_refusal(Product const& product, Tile const& tile) {
  auto const fit = [](MaskLines const& lines, int32_t extent) {
    return !lines.exists() || lines.block.value() % extent == 0;
  };
  bool const all_fit = fit(product.a_lines, tile.m) && fit(product.b_lines, tile.n) &&
                       fit(product.d_lines, tile.m) && product.d_block_n % tile.slot_n == 0;
  return all_fit ? nullptr : "a block is not a whole number of tiles";
}

// What is wrong whatever the addresses, words and leading dimensions.
char const* shape_refusal(Problem const& problem, Choice choice) {
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
  if (!takes(choice.architecture, problem.dtype)) {
    return kernels->takes_fp32
               ? "operands are of another data type than bfloat16, float16 and float32"
               : "operands are of another data type than bfloat16 and float16";
  }
  for (Mask const* mask : {&problem.a_mask, &problem.b_mask, &problem.d_mask}) {
    if (char const* const reason = blocks_refusal(*mask)) {
      return reason;
    }
  }
  for (char const* const reason : {activation_refusal(problem), wide_refusal(problem)}) {
    if (reason != nullptr) {
      return reason;
    }
  }
  Product const product = orient(problem, choice.swap);
  Tile const& tile = kernels->tiles[choice.tile].tile;
  char const* const reason = split_refusal(product, tile, choice.split_k, kernels->limits);
  return reason != nullptr ? reason : tile_refusal(product, tile);
}

// What 16-byte loads and stores, and the copy engine's strides, need of a matrix.
char const* matrix_refusal(void const* data, int64_t ld, int64_t contiguous, DataType dtype) {
  int64_t const vector = 16 / element_bytes(dtype);
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return "a matrix is null or not 16-byte aligned";
  }
  if (ld < contiguous || ld % vector != 0 || ld >= (int64_t(1) << 40) / element_bytes(dtype)) {
    return "a leading dimension is no multiple of 16 bytes, or out of range";
  }
  return contiguous % vector != 0 ? "a contiguous extent is no multiple of 16 bytes" : nullptr;
}

// What is wrong with where the matrices lie.
char const* address_refusal(Problem const& p) {
  bool const a_is_row_major = p.a.order == Order::row_major;
  bool const b_is_row_major = p.b.order == Order::row_major;
  char const* const reasons[] = {
      matrix_refusal(p.a.data, p.a.ld, a_is_row_major ? p.k : p.m, p.dtype),
      matrix_refusal(p.b.data, p.b.ld, b_is_row_major ? p.n : p.k, p.dtype),
      matrix_refusal(p.d, p.d_ld, p.n, p.d_is_fp32 ? DataType::fp32 : p.dtype),
      p.pre_activation == nullptr ? nullptr
                                  : matrix_refusal(p.pre_activation, p.d_ld, p.n, p.dtype),
      p.pre_activation != nullptr && p.pre_activation == p.d
          ? "the pre-activation and D are in one place"
          : nullptr,
      reinterpret_cast<uintptr_t>(p.bias) % 16 != 0 ? "the bias is not 16-byte aligned" : nullptr,
      words_refusal(p.a_mask),
      words_refusal(p.b_mask),
      words_refusal(p.d_mask)};
  for (char const* const reason : reasons) {
    if (reason != nullptr) {
      return reason;
    }
  }
  return nullptr;
}

ScheduleRequest request_for(Product const& product, KernelTile const& tile, int split_k) {
  return {
      product.m,       product.n,       product.k, element_bytes(product.dtype), product.a_lines,
      product.b_lines, product.d_lines, tile.tile, tile.has_parallel_slots,      split_k};
}

}  // namespace

int architecture_count() { return int(sizeof(kArchitectures) / sizeof(kArchitectures[0])); }

Architecture architecture(int i) { return kArchitectures[i]->architecture; }

char const* name(Architecture architecture) { return find(architecture)->name; }

bool runs_on(Architecture architecture, int major, int minor) {
  return find(architecture)->runs_on(major, minor);
}

bool takes(Architecture architecture, DataType dtype) {
  bool const is_fp32 = dtype == DataType::fp32;
  return dtype == DataType::bf16 || dtype == DataType::fp16 ||
         (is_fp32 && find(architecture)->takes_fp32);
}

Limits limits(Architecture architecture) { return find(architecture)->limits; }

int tile_count(Architecture architecture) { return find(architecture)->tile_count; }

Tile tile(Architecture architecture, int id) { return find(architecture)->tiles[id].tile; }

char const* refusal(Problem const& problem, Choice choice) {
  char const* const reason = shape_refusal(problem, choice);
  return reason != nullptr ? reason : address_refusal(problem);
}

size_t workspace_bytes(Problem const& problem, Choice choice) {
  if (shape_refusal(problem, choice) != nullptr) {
    return 0;
  }
  Kernels const& kernels = *find(choice.architecture);
  Product const product = orient(problem, choice.swap);
  return schedule_bytes(request_for(product, kernels.tiles[choice.tile], choice.split_k),
                        kernels.warp_groups);
}

cudaError_t matmul(Problem const& problem, Choice choice, void* workspace, cudaStream_t stream) {
  if (refusal(problem, choice) != nullptr) {
    return cudaErrorInvalidValue;
  }
  Gpu gpu{};
  cudaError_t status = read_gpu(&gpu);
  if (status != cudaSuccess) {
    return status;
  }
  Kernels const& kernels = *find(choice.architecture);
  Product const product = orient(problem, choice.swap);
  ScheduleRequest const request = request_for(product, kernels.tiles[choice.tile], choice.split_k);
  int64_t const records = max_records(product.m, product.n, request.tile) * choice.split_k;
  int32_t const ctas = gpu.sms * kernels.ctas_per_sm(choice.tile, gpu, records);
  Schedule schedule;
  status = make_schedule(request, {ctas, kernels.warp_groups, kernels.overlaps, workspace, stream},
                         &schedule);
  return status != cudaSuccess ? status : kernels.launch(choice.tile, product, schedule, stream);
}

}  // namespace sparsedrop
