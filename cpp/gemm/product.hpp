// A problem in the one orientation that a kernel runs: tile.m along m, tile.n along n.

#pragma once

#include "mask/lines.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {

struct Operand {
  void const* data;
  int64_t ld;
  bool k_major;  // which extent is contiguous: k, or the other one
};

struct Product {
  DataType dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  Operand a;
  Operand b;
  void* d;
  void* pre_activation;
  int64_t d_ld;
  bool n_major;  // which extent of D is contiguous, and which one the bias runs along
  MaskLines a_lines;
  MaskLines b_lines;
  MaskLines d_lines;
  int32_t d_block_n;  // extent of D's blocks along n
  void const* bias;
  float alpha;
  Activation activation;
  bool d_is_fp32;
  bool accumulates;
};

Product orient(Problem const& problem, bool swap);

constexpr int32_t element_bytes(DataType dtype) { return dtype == DataType::fp32 ? 4 : 2; }

}  // namespace sparsedrop
