// The Python module: the public header with addresses and streams as integers. No torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
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

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// `what` makes the text that stands before CUDA's own reason.
template <class What>
void check(cudaError_t status, What const& what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // the error is reported here; the next call starts clean
    throw std::runtime_error(what() + ": " + cudaGetErrorString(status));
  }
}

// Makes `device` current for one call.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), [] { return std::string("cudaGetDevice"); });
    if (before_ != device) {
      check(cudaSetDevice(device), [&] { return "cudaSetDevice(" + std::to_string(device) + ")"; });
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

// A family of kernels as Python reads it.
struct BoundArchitecture {
  Architecture architecture;

  std::string name() const { return sparsedrop::name(architecture); }
  bool runs_on(int major, int minor) const {
    return sparsedrop::runs_on(architecture, major, minor);
  }
  Limits limits() const { return sparsedrop::limits(architecture); }
  std::vector<std::tuple<int, int, int, int>> tiles() const {
    std::vector<std::tuple<int, int, int, int>> all;
    for (int id = 0; id < tile_count(architecture); ++id) {
      Tile const t = tile(architecture, id);
      all.emplace_back(t.m, t.n, t.k, t.slot_n);
    }
    return all;
  }
};

std::vector<BoundArchitecture> all_architectures() {
  std::vector<BoundArchitecture> all;
  for (int i = 0; i < architecture_count(); ++i) {
    all.push_back({architecture(i)});
  }
  return all;
}

Architecture find_architecture(std::string const& wanted) {
  for (BoundArchitecture const& family : all_architectures()) {
    if (family.name() == wanted) {
      return family.architecture;
    }
  }
  throw std::invalid_argument("this build of sparsedrop has no kernels of architecture " + wanted);
}

std::string describe(Problem const& p, Choice choice) {
  std::ostringstream text;
  text << "sparsedrop.matmul with m=" << p.m << ", n=" << p.n << ", k=" << p.k << ", lda=" << p.a.ld
       << ", ldb=" << p.b.ld << ", ldd=" << p.d_ld << ", tile " << choice.tile << " of "
       << name(choice.architecture) << (choice.swap ? ", swapped" : "");
  if (choice.split_k != 1) {
    text << ", split into " << choice.split_k << " along k";
  }
  if (p.d_is_fp32) {
    text << (p.accumulates ? ", added to D in float32" : ", D in float32");
  }
  for (auto const& [name, mask] :
       {std::pair("A", p.a_mask), std::pair("B", p.b_mask), std::pair("D", p.d_mask)}) {
    if (mask.block_rows != 0) {
      text << ", blocks of " << name << " " << mask.block_rows << "x" << mask.block_cols;
    }
  }
  return text.str();
}

std::string describe(Blocking const& blocking) {
  return "a [" + std::to_string(blocking.rows) + ", " + std::to_string(blocking.cols) +
         "] matrix in blocks of " + std::to_string(blocking.block_rows) + "x" +
         std::to_string(blocking.block_cols);
}

void bind_mask_words(uintptr_t live, int64_t rows, int64_t cols, int32_t block_rows,
                     int32_t block_cols, uintptr_t row_words, uintptr_t col_words, int device,
                     uintptr_t stream) {
  Blocking const blocking{rows, cols, block_rows, block_cols};
  OnDevice const guard(device);
  check(mask_words(at<uint8_t const>(live), blocking, at<uint32_t>(row_words),
                   at<uint32_t>(col_words), at<CUstream_st>(stream)),
        [&] { return "sparsedrop.mask_words for " + describe(blocking); });
}

void bind_bernoulli_mask(double keep, uint64_t seed, uint64_t offset, int64_t rows, int64_t cols,
                         int32_t block_rows, int32_t block_cols, uintptr_t live,
                         uintptr_t row_words, uintptr_t col_words, int device, uintptr_t stream) {
  Blocking const blocking{rows, cols, block_rows, block_cols};
  OnDevice const guard(device);
  check(bernoulli_mask({keep, seed, offset}, blocking, at<uint8_t>(live), at<uint32_t>(row_words),
                       at<uint32_t>(col_words), at<CUstream_st>(stream)),
        [&] {
          return "sparsedrop.bernoulli_mask for " + describe(blocking) + ", keeping " +
                 std::to_string(keep) + ", offset " + std::to_string(offset);
        });
}

void bind_balanced_live(uintptr_t keys, int64_t grid_rows, int64_t grid_cols, int64_t count,
                        uintptr_t live, int device, uintptr_t stream) {
  OnDevice const guard(device);
  check(balanced_live(at<int32_t const>(keys), grid_rows, grid_cols, count, at<uint8_t>(live),
                      at<CUstream_st>(stream)),
        [&] {
          return "sparsedrop.balanced_live for a grid of [" + std::to_string(grid_rows) + ", " +
                 std::to_string(grid_cols) + "] blocks, keeping " + std::to_string(count) +
                 " a row";
        });
}

void bind_column_sums(int dtype, uintptr_t data, int64_t rows, int64_t cols, int64_t ld,
                      uintptr_t row_words, uintptr_t col_words, int32_t block_rows,
                      int32_t block_cols, uintptr_t out, int out_dtype, bool accumulates,
                      int device, uintptr_t stream) {
  Matrix const matrix{at<void const>(data), ld, Order::row_major};
  Mask const mask{at<uint32_t const>(row_words), at<uint32_t const>(col_words), block_rows,
                  block_cols};
  OnDevice const guard(device);
  Sums const sums{at<void>(out), DataType(out_dtype), accumulates};
  check(column_sums(DataType(dtype), matrix, rows, cols, mask, sums, at<CUstream_st>(stream)), [&] {
    return "sparsedrop.column_sums for a [" + std::to_string(rows) + ", " + std::to_string(cols) +
           "] matrix, ld=" + std::to_string(ld);
  });
}

// A product and how it is run, all but its addresses: made once for a shape, launched many times.
class Launch {
 public:
  using Block = std::optional<std::pair<int32_t, int32_t>>;

  Launch(int dtype, int64_t m, int64_t n, int64_t k, int64_t a_ld, bool a_k_major, int64_t b_ld,
         bool b_k_major, int64_t d_ld, Block const& a_block, Block const& b_block,
         Block const& d_block, int activation, std::string const& architecture, int tile, bool swap,
         int split_k, int device, bool d_is_fp32, bool accumulates)
      : choice_{tile, swap, split_k, find_architecture(architecture)}, device_(device) {
    problem_.dtype = DataType(dtype);
    problem_.m = m;
    problem_.n = n;
    problem_.k = k;
    problem_.a = {nullptr, a_ld, a_k_major ? Order::row_major : Order::col_major};
    problem_.b = {nullptr, b_ld, b_k_major ? Order::col_major : Order::row_major};
    problem_.d_ld = d_ld;
    set_block(problem_.a_mask, a_block);
    set_block(problem_.b_mask, b_block);
    set_block(problem_.d_mask, d_block);
    problem_.activation = Activation(activation);
    problem_.d_is_fp32 = d_is_fp32;
    problem_.accumulates = accumulates;
  }

  size_t workspace_bytes() const { return sparsedrop::workspace_bytes(problem_, choice_); }

  // Why it cannot be launched, whatever the addresses; nothing where it can.
  std::optional<std::string> refusal() const {
    alignas(16) static char const aligned[16] = {};
    auto const somewhere = reinterpret_cast<uintptr_t>(&aligned[0]);
    Problem problem = problem_;
    problem.a.data = problem.b.data = at<void const>(somewhere);
    problem.d = at<void>(somewhere);
    for (Mask* mask : {&problem.a_mask, &problem.b_mask, &problem.d_mask}) {
      if (is_mask(*mask)) {
        set_words(*mask, somewhere, somewhere);
      }
    }
    char const* const reason = sparsedrop::refusal(problem, choice_);
    return reason == nullptr ? std::nullopt : std::optional<std::string>(reason);
  }

  void operator()(uintptr_t a, uintptr_t b, uintptr_t d, uintptr_t pre_activation,
                  uintptr_t a_row_words, uintptr_t a_col_words, uintptr_t b_row_words,
                  uintptr_t b_col_words, uintptr_t d_row_words, uintptr_t d_col_words, float alpha,
                  uintptr_t bias, uintptr_t workspace, uintptr_t stream) const {
    Problem problem = problem_;
    problem.a.data = at<void const>(a);
    problem.b.data = at<void const>(b);
    problem.d = at<void>(d);
    problem.pre_activation = at<void>(pre_activation);
    set_words(problem.a_mask, a_row_words, a_col_words);
    set_words(problem.b_mask, b_row_words, b_col_words);
    set_words(problem.d_mask, d_row_words, d_col_words);
    problem.alpha = alpha;
    problem.bias = at<void const>(bias);
    OnDevice const guard(device_);
    check(matmul(problem, choice_, at<void>(workspace), at<CUstream_st>(stream)), [&] {
      char const* const reason = sparsedrop::refusal(problem, choice_);
      return describe(problem, choice_) + (reason == nullptr ? "" : std::string(": ") + reason);
    });
  }

 private:
  static void set_block(Mask& mask, Block const& block) {
    if (block) {
      mask.block_rows = block->first;
      mask.block_cols = block->second;
    }
  }

  static void set_words(Mask& mask, uintptr_t row_words, uintptr_t col_words) {
    mask.row_words = at<uint32_t const>(row_words);
    mask.col_words = at<uint32_t const>(col_words);
  }

  Problem problem_;
  Choice choice_;
  int device_;
};

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The sparsedrop kernels. Addresses and streams are integers.";
  module.attr("CUDA_ARCHS") = SPARSEDROP_CUDA_ARCHS;
  module.attr("MASK_UNIT") = kMaskUnit;
  module.attr("MAX_SUM_COLUMNS") = kMaxSumColumns;
  module.attr("MAX_EXTENT") = kMaxExtent;
  module.attr("DTYPES") = std::map<std::string, int>{{"bfloat16", int(DataType::bf16)},
                                                     {"float16", int(DataType::fp16)},
                                                     {"float32", int(DataType::fp32)}};
  module.attr("ACTIVATIONS") = std::map<std::string, int>{{"none", int(Activation::none)},
                                                          {"relu", int(Activation::relu)},
                                                          {"gelu", int(Activation::gelu)},
                                                          {"silu", int(Activation::silu)}};
  py::class_<BoundArchitecture>(module, "Architecture")
      .def_property_readonly("name", &BoundArchitecture::name)
      .def_property_readonly("tiles", &BoundArchitecture::tiles)
      .def_property_readonly("max_split_k",
                             [](BoundArchitecture const& a) { return a.limits().max_split_k; })
      .def_property_readonly("max_split_n",
                             [](BoundArchitecture const& a) { return a.limits().max_split_n; })
      .def_property_readonly("max_split_slots",
                             [](BoundArchitecture const& a) { return a.limits().max_split_slots; })
      .def("runs_on", &BoundArchitecture::runs_on, py::arg("major"), py::arg("minor"));
  module.attr("ARCHITECTURES") = all_architectures();
  module.def("mask_words", &bind_mask_words);
  module.def("bernoulli_mask", &bind_bernoulli_mask);
  module.def("balanced_live", &bind_balanced_live);
  module.def("column_sums", &bind_column_sums);
  py::class_<Launch>(module, "Launch")
      .def(py::init<int, int64_t, int64_t, int64_t, int64_t, bool, int64_t, bool, int64_t,
                    Launch::Block const&, Launch::Block const&, Launch::Block const&, int,
                    std::string const&, int, bool, int, int, bool, bool>(),
           py::kw_only(), py::arg("dtype"), py::arg("m"), py::arg("n"), py::arg("k"),
           py::arg("a_ld"), py::arg("a_k_major"), py::arg("b_ld"), py::arg("b_k_major"),
           py::arg("d_ld"), py::arg("a_block"), py::arg("b_block"), py::arg("d_block"),
           py::arg("activation"), py::arg("architecture"), py::arg("tile"), py::arg("swap"),
           py::arg("split_k"), py::arg("device"), py::arg("d_is_fp32") = false,
           py::arg("accumulates") = false)
      .def_property_readonly("workspace_bytes", &Launch::workspace_bytes)
      .def_property_readonly("refusal", &Launch::refusal)
      .def("__call__", &Launch::operator());
}

}  // namespace sparsedrop
