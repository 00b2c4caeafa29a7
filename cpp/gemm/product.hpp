// A problem in the one orientation that the kernel runs: tile.m along m, tile.n along n.

#pragma once

#include "schedule/tile_list.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

struct Operand {
  void const* data;
  int64_t ld;
  bool k_major;  // which extent is contiguous: k, or the other one
};

// Where parts of tiles leave their sums. CTA i multiplies part i / tiles of tile i % tiles, and all
// but those of the last part leave one: in the order of the CTAs, and of the warp groups within.
struct PartialSums {
  float* data = nullptr;
  unsigned long long* flags = nullptr;
  size_t bytes = 0;
  int32_t tiles = 0;
  int32_t parts = 1;
};

struct Product {
  int64_t m;
  int64_t n;
  int64_t k;
  Operand a;
  Operand b;
  void* d;
  void* pre_activation;
  int64_t d_ld;
  bool n_major;  // which extent of D is contiguous, and which one the bias runs along
  Lines a_lines;
  Lines b_lines;
  Lines d_lines;
  void const* bias;
  float alpha;
  Activation activation;
  PartialSums sums;
};

Product orient(Problem const& problem, bool swap);

// Defined in launch.hpp, and instantiated once for each element type and layout in instance.cu.
template <class Element, bool AKMajor, bool BKMajor, bool NMajor>
cudaError_t launch_tile(int tile, Product const& product, TileList const& list, int32_t ctas,
                        cudaStream_t stream);

}  // namespace sparsedrop
