// The Python module: the public header with addresses and streams as integers. No torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "sparsedrop/sparsedrop.h"

namespace py = pybind11;

namespace sparsedrop {
namespace {

using MaskTuple = std::tuple<uintptr_t, uintptr_t, int32_t, int32_t>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t status, std::string const& what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // the error is reported here; the next call starts clean
    throw std::runtime_error(what + ": " + cudaGetErrorString(status));
  }
}

// Makes `device` current for one call.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) {
      check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
      changed_ = true;
    }
  }
  ~OnDevice() {
    if (changed_) {
      cudaSetDevice(before_);
    }
  }
  OnDevice(OnDevice const&) = delete;
  OnDevice& operator=(OnDevice const&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

Mask mask_from(std::optional<MaskTuple> const& mask) {
  if (!mask) {
    return {};
  }
  auto const [row_words, col_words, block_rows, block_cols] = *mask;
  return {at<uint32_t const>(row_words), at<uint32_t const>(col_words), block_rows, block_cols};
}

std::vector<std::tuple<int, int, int, int>> tiles() {
  std::vector<std::tuple<int, int, int, int>> all;
  for (int id = 0; id < tile_count(); ++id) {
    Tile const t = tile(id);
    all.emplace_back(t.m, t.n, t.k, t.slot_n);
  }
  return all;
}

std::string describe(Problem const& p, Choice choice) {
  std::ostringstream text;
  text << "sparsedrop.matmul with m=" << p.m << ", n=" << p.n << ", k=" << p.k << ", lda=" << p.a.ld
       << ", ldb=" << p.b.ld << ", ldd=" << p.d_ld << ", tile " << choice.tile
       << (choice.swap ? ", swapped" : "");
  for (auto const& [name, mask] :
       {std::pair("A", p.a_mask), std::pair("B", p.b_mask), std::pair("D", p.d_mask)}) {
    if (mask.row_words != nullptr) {
      text << ", blocks of " << name << " " << mask.block_rows << "x" << mask.block_cols;
    }
  }
  return text.str();
}

void bind_mask_words(uintptr_t live, int64_t rows, int64_t cols, int32_t block_rows,
                     int32_t block_cols, uintptr_t row_words, uintptr_t col_words, int device,
                     uintptr_t stream) {
  OnDevice const guard(device);
  check(mask_words(at<uint8_t const>(live), rows, cols, block_rows, block_cols,
                   at<uint32_t>(row_words), at<uint32_t>(col_words), at<CUstream_st>(stream)),
        "sparsedrop.mask_words for a [" + std::to_string(rows) + ", " + std::to_string(cols) +
            "] matrix in blocks of " + std::to_string(block_rows) + "x" +
            std::to_string(block_cols));
}

void bind_balanced_live(uintptr_t keys, int64_t grid_rows, int64_t grid_cols, int64_t keep,
                        uintptr_t live, int device, uintptr_t stream) {
  OnDevice const guard(device);
  check(balanced_live(at<int32_t const>(keys), grid_rows, grid_cols, keep, at<uint8_t>(live),
                      at<CUstream_st>(stream)),
        "sparsedrop.balanced_live for a grid of [" + std::to_string(grid_rows) + ", " +
            std::to_string(grid_cols) + "] blocks, keeping " + std::to_string(keep) + " a row");
}

void bind_matmul(int dtype, int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t a_ld,
                 bool a_k_major, uintptr_t b, int64_t b_ld, bool b_k_major, uintptr_t d,
                 int64_t d_ld, std::optional<MaskTuple> const& a_mask,
                 std::optional<MaskTuple> const& b_mask, std::optional<MaskTuple> const& out_mask,
                 float alpha, uintptr_t bias, int activation, int tile, bool swap,
                 uintptr_t workspace, int device, uintptr_t stream) {
  Problem problem;
  problem.dtype = DataType(dtype);
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.a = {at<void const>(a), a_ld, a_k_major ? Order::row_major : Order::col_major};
  problem.b = {at<void const>(b), b_ld, b_k_major ? Order::col_major : Order::row_major};
  problem.d = at<void>(d);
  problem.d_ld = d_ld;
  problem.a_mask = mask_from(a_mask);
  problem.b_mask = mask_from(b_mask);
  problem.d_mask = mask_from(out_mask);
  problem.bias = at<void const>(bias);
  problem.alpha = alpha;
  problem.activation = Activation(activation);
  Choice const choice{tile, swap};
  if (char const* reason = refusal(problem, choice)) {
    throw std::runtime_error(describe(problem, choice) + ": " + reason);
  }
  OnDevice const guard(device);
  cudaError_t const status = matmul(problem, choice, at<void>(workspace), at<CUstream_st>(stream));
  if (status != cudaSuccess) {
    check(status, describe(problem, choice));
  }
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The sparsedrop kernels. Addresses and streams are integers.";
  module.attr("TILES") = tiles();
  module.attr("CUDA_ARCHS") = SPARSEDROP_CUDA_ARCHS;
  module.def("mask_words", &bind_mask_words);
  module.def("balanced_live", &bind_balanced_live);
  module.def("workspace_bytes", [](int64_t m, int64_t n, int tile, bool swap) {
    return workspace_bytes(m, n, Choice{tile, swap});
  });
  module.def("matmul", &bind_matmul);
}

}  // namespace sparsedrop
