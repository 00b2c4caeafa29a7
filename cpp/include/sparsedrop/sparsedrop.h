// The public interface of the sparsedrop kernels:
//
//     D ∘ M_D  =  act( alpha · (A ∘ M_A) (B ∘ M_B) + bias )  ∘ M_D
//
// A is [m, k], B is [k, n], D is [m, n]; a mask is a grid of blocks over its matrix, live or
// dropped. Dropped blocks of A and B are never read, dropped blocks of D are written as zeros.
//
// Nothing here allocates, synchronises, throws or touches the default stream. All that is kept is
// what never changes: an entry point of the driver, and which GPU was told how much shared memory a
// kernel takes. Every function launches on the stream it is given, which must belong to the current
// device.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace sparsedrop {

// One bit of a mask stands for so many elements: the depth of a K tile of the kernels.
constexpr int kMaskUnit = 64;

// Words of 32 mask units that one line (block row or block column) over `extent` elements takes.
constexpr int64_t mask_line_words(int64_t extent) {
  return (extent + 32 * kMaskUnit - 1) / (32 * kMaskUnit);
}

// What the kernels read of a block mask over a [rows, cols] matrix. Both block extents are
// multiples of kMaskUnit. `row_words` is [ceil(rows / block_rows), mask_line_words(cols)]: bit u %
// 32 of word u / 32 of line r is set where block row r is live at columns [64 u, 64 u + 64).
// `col_words` is the same for the block columns over the rows. Blocks of 0 rows: no mask.
struct Mask {
  uint32_t const* row_words = nullptr;
  uint32_t const* col_words = nullptr;
  int32_t block_rows = 0;
  int32_t block_cols = 0;
};

constexpr bool is_mask(Mask const& mask) { return mask.block_rows != 0; }

// How a mask's matrix is cut into blocks; the last block row and column may be ragged.
struct Blocking {
  int64_t rows;
  int64_t cols;
  int32_t block_rows;
  int32_t block_cols;
};

// Builds both orientations of a mask from its grid of booleans, one byte a block, row-major
// [ceil(rows / block_rows), ceil(cols / block_cols)]. One launch.
cudaError_t mask_words(uint8_t const* live, Blocking const& blocking, uint32_t* row_words,
                       uint32_t* col_words, cudaStream_t stream);

// One draw of a whole grid: `keep` is each block's probability to be live, `seed` and `offset` are
// the state of a Philox4x32-10 generator as torch's GPU generators have it. The draw uses 4 of the
// offset, which the caller advances.
struct BernoulliDraw {
  double keep;
  uint64_t seed;
  uint64_t offset;  // a multiple of 4
};

// Draws a grid whose blocks are live independently of each other, and builds both orientations; or
// the grid alone, in blocks of any extents, if the words are null. Block i of the row-major grid is
// live where the first number of subsequence i is below keep * 2^32. One launch.
cudaError_t bernoulli_mask(BernoulliDraw const& draw, Blocking const& blocking, uint8_t* live,
                           uint32_t* row_words, uint32_t* col_words, cudaStream_t stream);

// Draws a grid with exactly `count` live blocks in each row and, to within one, equally many in
// each column. Rows come in bands of grid_cols / gcd(count, grid_cols). `keys` holds one random
// int32 per band and column: their ranks permute the band's columns, and row j of the band keeps
// the columns of rank j·count ... j·count + count - 1 (mod grid_cols). 0 < count < grid_cols. One
// launch.
cudaError_t balanced_live(int32_t const* keys, int64_t grid_rows, int64_t grid_cols, int64_t count,
                          uint8_t* live, cudaStream_t stream);

// Operands of products are bf16 or fp16, or fp32 where an architecture takes it (takes). Else fp32
// is for sums, for D by Problem::d_is_fp32 and, as fp64 is, for what goes element by element.
enum class DataType { bf16 = 0, fp16 = 1, fp32 = 2, fp64 = 3 };

// out = factor · in where a block is live, 0 where it is dropped and nothing is read: row-major
// matrices, which may be one and the same. `live` holds one byte a block, in any strides, or is
// null: all are live. An in_ld of 0 repeats one row. Of one dtype, or fp32 on one side and 16 bits
// on the other. Extents are at most 2^31 - 1. One launch.
//
// With `drawn` the grid is drawn as bernoulli_mask draws it, and written there, row-major; `live`
// and its strides then say nothing.
struct MaskedCopy {
  DataType in_dtype;
  DataType out_dtype;
  void const* in;
  int64_t in_ld;
  void* out;
  int64_t out_ld;
  Blocking blocking;
  uint8_t const* live;
  int64_t live_row_stride;
  int64_t live_col_stride;
  double factor;
  uint8_t* drawn = nullptr;
  BernoulliDraw draw = {};
};

cudaError_t masked_copy(MaskedCopy const& copy, cudaStream_t stream);

// An array of fp32 or of the narrow type itself, 16-byte aligned, and where factor times it goes in
// 16 bits, 8-byte aligned.
struct Rounding {
  void const* from;
  DataType from_dtype;
  void* to;
  int64_t count;
  float factor = 1.0f;
};

constexpr int kMaxRoundings = 8;

// Rounds arrays to bf16 or fp16, kMaxRoundings at most. One launch.
cudaError_t round_to(DataType dtype, Rounding const* arrays, int count, cudaStream_t stream);

// gelu is the exact one, gelu_tanh its approximation by tanh.
enum class Activation { none = 0, relu = 1, gelu = 2, silu = 3, gelu_tanh = 4 };

// What a feed-forward block does between its products, with a, b and the gradient g of its result:
//
//   activate         out = act(a)
//   activation_grad  out = g · act'(a); a may be relu's result, too
//   gate             out = act(a) · b
//   gate_grad        out = g · b · act'(a), out_b = g · act(a)
//   add              out = a + b
enum class PointwiseKind { activate = 0, activation_grad = 1, gate = 2, gate_grad = 3, add = 4 };

// In the live blocks of [rows, cols] matrices of bf16 or fp16, row-major and without gaps. What
// stands in dropped blocks is neither read nor written. Results may lie where operands do. `live`
// holds one byte a block, row-major, or is null: all are live. Matrices are 16-byte aligned, cols
// and the blocks' columns multiples of 8, extents at most 2^31 - 1. One launch.
struct Pointwise {
  PointwiseKind kind;
  Activation activation;
  DataType dtype;
  void const* a;
  void const* b;
  void const* grad;
  void* out;
  void* out_b;
  Blocking blocking;
  uint8_t const* live;
};

cudaError_t pointwise(Pointwise const& call, cudaStream_t stream);

// Which extent of a matrix is contiguous.
enum class Order { row_major, col_major };

// `ld` is the distance in elements between neighbours along the extent that is not contiguous.
struct Matrix {
  void const* data = nullptr;
  int64_t ld = 0;
  Order order = Order::row_major;
};

// Where sums go: into the matrix's dtype or fp32, and in place of what is there, or added to it.
struct Sums {
  void* data;  // one element a column
  DataType dtype;
  bool accumulates = false;
  double factor = 1.0;  // of what is summed
};

// Sums of the columns of a [rows, cols] matrix over its live blocks, such as a bias's gradient: in
// fp32, or fp64 of fp64, rounded once into `out`, the same in every run. The matrix is row-major;
// rows >= 1, and 1 <= cols <= kMaxSumColumns. Of 16 bits it is read fastest if it is 16-byte
// aligned, and cols and its leading dimension are multiples of 8. cudaErrorInvalidValue where it
// cannot be summed. One launch.
constexpr int64_t kMaxSumColumns = 64 * 65535;

cudaError_t column_sums(DataType dtype, Matrix const& matrix, int64_t rows, int64_t cols,
                        Mask const& mask, Sums const& out, cudaStream_t stream);

// Tiles reach past the last row and column, and both are counted in 32 bits.
constexpr int64_t kMaxExtent = INT32_MAX - 256;

// One product. Accumulation, alpha, bias and activation are in fp32; A, B, D and bias in `dtype`.
// Operands in fp32 are rounded to tf32, to the nearest, as they are multiplied.
//
// What the gradient of gelu, gelu_tanh or silu needs is stored beside D where `pre_activation` is
// not null: P = alpha · (A ∘ M_A) (B ∘ M_B) + bias, as D lies and in its dtype. D is then act(P) of
// the rounded P. Dropped blocks of P are not written; it overlaps nothing else.
//
// A gradient that is kept in fp32 is written so: with `d_is_fp32`, D is alpha · (A ∘ M_A) (B ∘ M_B)
// in fp32, never rounded to `dtype`, and with `accumulates` it is added to D in place. D has no
// mask, bias and activation then, and of A, m is contiguous, of B, n: as in dW = dYᵀ X.
//
// Base pointers are 16-byte aligned, and so are neighbours along whatever is not contiguous: n, the
// contiguous extents of A and B, and all leading dimensions are multiples of 8, or of 4 those of
// matrices in fp32. Extents are 1 to kMaxExtent.
struct Problem {
  DataType dtype = DataType::bf16;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  Matrix a;
  Matrix b;
  void* d = nullptr;               // row-major
  void* pre_activation = nullptr;  // or null: not wanted
  int64_t d_ld = 0;
  Mask a_mask;
  Mask b_mask;
  Mask d_mask;
  void const* bias = nullptr;  // n values, or null
  float alpha = 1.0f;
  Activation activation = Activation::none;
  bool d_is_fp32 = false;    // else D is in `dtype`
  bool accumulates = false;  // D += the product: where D is fp32
};

// A family of kernels, named by the compute capability that it was written for.
enum class Architecture { sm80 = 80, sm90 = 90 };

// Those that are compiled in, best first: 0 <= i < architecture_count(). What follows is asked of
// one of them.
int architecture_count();
Architecture architecture(int i);
char const* name(Architecture architecture);

// Whether a GPU of that compute capability runs its kernels.
bool runs_on(Architecture architecture, int major, int minor);

// Whether its kernels multiply operands of that type.
bool takes(Architecture architecture, DataType dtype);

// The work of one CTA: n / slot_n slots, which are multiplied side by side and may lie anywhere
// along n as long as they share their list of live K tiles.
struct Tile {
  int32_t m;
  int32_t n;
  int32_t k;
  int32_t slot_n;
  Architecture architecture;
};

// The tiles in the order of their ids: 0 <= id < tile_count().
int tile_count(Architecture architecture);
Tile tile(Architecture architecture, int id);

// Split-K: where there are few tiles and k is long, each may be split along its live K tiles into
// up to max_split_k, which are multiplied side by side and added up in one order: without a mask on
// D and an activation, for tiles of max_split_n columns at most, and where the splits of all tiles
// have no more than max_split_slots slots.
struct Limits {
  int32_t max_split_k;
  int32_t max_split_n;
  int64_t max_split_slots;
};

Limits limits(Architecture architecture);

// How to run a problem: which tile, in which orientation, and split along k into how many. With
// `swap`, the transposed problem Dᵀ = Bᵀ Aᵀ is run, so that tile.m runs along n and tile.n along m.
struct Choice {
  int tile = 0;
  bool swap = false;
  int split_k = 1;
  Architecture architecture = Architecture::sm90;
};

// Null where the kernels can run the problem this way, else the reason why not.
char const* refusal(Problem const& problem, Choice choice);

// Bytes of device memory that matmul() needs: partial sums of split-K, or the list of output tiles,
// where they are so many, or so unequal, that CTAs cannot find their own. Looks at extents and
// blocks only: addresses may still be null. 0 where the problem cannot be run this way.
size_t workspace_bytes(Problem const& problem, Choice choice);

// Launches the product on the current device, which runs the choice's architecture (runs_on), or
// the launch fails. `workspace` is 16-byte aligned, comes with anything in it, belongs to one
// launch at a time and is free to reuse once the stream has passed. cudaErrorInvalidValue where
// refusal() has a reason, or a workspace is needed and missing or not aligned.
cudaError_t matmul(Problem const& problem, Choice choice, void* workspace, cudaStream_t stream);

}  // namespace sparsedrop
