// What each family of kernels says of itself. matmul.cpp knows no more of it than this.

#pragma once

#include "common/gpu.hpp"
#include "gemm/product.hpp"
#include "schedule/schedule.hpp"

namespace sparsedrop {

struct KernelTile {
  Tile tile;
  bool has_parallel_slots;  // see ScheduleRequest
};

struct Kernels {
  Architecture architecture;
  char const* name;
  bool (*runs_on)(int major, int minor);  // compute capability
  bool overlaps;                          // see common/overlap.hpp
  int32_t warp_groups;                    // that leave partial sums, each for itself
  Limits limits;
  KernelTile const* tiles;
  int tile_count;
  // CTAs of that tile that an SM runs beside each other, of a product of so many records at most,
  // splits counted.
  int32_t (*ctas_per_sm)(int tile, Gpu const& gpu, int64_t records);
  bool takes_fp32;  // operands in fp32, multiplied as tf32
  cudaError_t (*launch)(int tile, Product const& product, Schedule const& schedule,
                        cudaStream_t stream);
};

namespace sm90 {
extern Kernels const kKernels;
}

namespace sm80 {
extern Kernels const kKernels;
}

}  // namespace sparsedrop
