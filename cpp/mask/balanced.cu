// Random keys -> a grid in which every line keeps the same number of blocks.

#include <numeric>

#include "common/host_device.hpp"
#include "sparsedrop/sparsedrop.h"

namespace sparsedrop {
namespace {

constexpr int kThreads = 256;

struct Bands {
  int64_t grid_rows;
  int64_t grid_cols;
  int64_t count;
  int64_t rows_per_band;
};

// One CTA a band. The rank of a column's key is its place on a circle of grid_cols places; row j of
// the band keeps the arc of `count` places that starts where row j - 1 stopped, so that a whole
// band goes round the circle a whole number of times and keeps every column equally often.
__global__ void balanced_live_kernel(int32_t const* keys, Bands bands, uint8_t* live) {
  int64_t const band = blockIdx.x;
  int64_t const first_row = band * bands.rows_per_band;
  int64_t const rows = min(bands.rows_per_band, bands.grid_rows - first_row);
  int32_t const* band_keys = keys + band * bands.grid_cols;
  for (int64_t col = threadIdx.x; col < bands.grid_cols; col += kThreads) {
    int32_t const key = band_keys[col];
    int64_t place = 0;
    for (int64_t other = 0; other < bands.grid_cols; ++other) {
      int32_t const other_key = band_keys[other];
      place += other_key < key || (other_key == key && other < col);
    }
    for (int64_t j = 0; j < rows; ++j) {
      int64_t const start = j * bands.count % bands.grid_cols;
      int64_t const along = (place - start + bands.grid_cols) % bands.grid_cols;
      live[(first_row + j) * bands.grid_cols + col] = along < bands.count;
    }
  }
}

}  // namespace

cudaError_t balanced_live(int32_t const* keys, int64_t grid_rows, int64_t grid_cols, int64_t count,
                          uint8_t* live, cudaStream_t stream) {
  if (grid_rows < 0 || count <= 0 || count >= grid_cols) {
    return cudaErrorInvalidValue;
  }
  int64_t const rows_per_band = grid_cols / std::gcd(count, grid_cols);
  int64_t const bands = ceil_div(grid_rows, rows_per_band);
  if (bands == 0) {
    return cudaSuccess;
  }
  balanced_live_kernel<<<unsigned(bands), kThreads, 0, stream>>>(
      keys, Bands{grid_rows, grid_cols, count, rows_per_band}, live);
  return cudaGetLastError();
}

}  // namespace sparsedrop
