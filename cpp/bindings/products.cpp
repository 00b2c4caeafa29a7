// Products for Python.

#include <pybind11/stl.h>

#include "bindings/bind.hpp"
#include "bindings/blas.hpp"
#include "bindings/call.hpp"
#include "bindings/fixed_products.hpp"
#include "bindings/launch.hpp"

namespace py = pybind11;

namespace sparsedrop {
namespace {

void set_block(Mask& mask, Launch::Block const& block) {
  if (block) {
    mask.block_rows = block->first;
    mask.block_cols = block->second;
  }
}

Launch make_launch(int dtype, int64_t m, int64_t n, int64_t k, int64_t a_ld, bool a_k_major,
                   int64_t b_ld, bool b_k_major, int64_t d_ld, Launch::Block const& a_block,
                   Launch::Block const& b_block, Launch::Block const& d_block, int activation,
                   bool d_is_fp32, bool accumulates, std::string const& architecture, int tile,
                   bool swap, int split_k, int device) {
  Problem problem;
  problem.dtype = DataType(dtype);
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.a = {nullptr, a_ld, a_k_major ? Order::row_major : Order::col_major};
  problem.b = {nullptr, b_ld, b_k_major ? Order::col_major : Order::row_major};
  problem.d_ld = d_ld;
  set_block(problem.a_mask, a_block);
  set_block(problem.b_mask, b_block);
  set_block(problem.d_mask, d_block);
  problem.activation = Activation(activation);
  problem.d_is_fp32 = d_is_fp32;
  problem.accumulates = accumulates;
  return {problem, {tile, swap, split_k, find_architecture(architecture)}, device};
}

Launch::Words words(uintptr_t rows, uintptr_t cols) {
  return {at<uint32_t const>(rows), at<uint32_t const>(cols)};
}

void call_launch(Launch const& launch, uintptr_t a, uintptr_t b, uintptr_t d,
                 uintptr_t pre_activation, uintptr_t a_row_words, uintptr_t a_col_words,
                 uintptr_t b_row_words, uintptr_t b_col_words, uintptr_t d_row_words,
                 uintptr_t d_col_words, float alpha, uintptr_t bias, uintptr_t workspace,
                 uintptr_t stream) {
  Launch::Call call;
  call.a = at<void const>(a);
  call.b = at<void const>(b);
  call.d = at<void>(d);
  call.pre_activation = at<void>(pre_activation);
  call.a_words = words(a_row_words, a_col_words);
  call.b_words = words(b_row_words, b_col_words);
  call.d_words = words(d_row_words, d_col_words);
  call.alpha = alpha;
  call.bias = at<void const>(bias);
  call.workspace = at<void>(workspace);
  call.stream = at<CUstream_st>(stream);
  OnDevice const guard(launch.device());
  launch.run(call);
}

}  // namespace

void bind_products(py::module_& module) {
  // Local to the module: two builds may be loaded side by side.
  py::class_<Launch>(module, "Launch", py::module_local())
      .def(py::init(&make_launch), py::kw_only(), py::arg("dtype"), py::arg("m"), py::arg("n"),
           py::arg("k"), py::arg("a_ld"), py::arg("a_k_major"), py::arg("b_ld"),
           py::arg("b_k_major"), py::arg("d_ld"), py::arg("a_block"), py::arg("b_block"),
           py::arg("d_block"), py::arg("activation"), py::arg("d_is_fp32") = false,
           py::arg("accumulates") = false, py::arg("architecture"), py::arg("tile"),
           py::arg("swap"), py::arg("split_k"), py::arg("device"))
      .def_property_readonly("workspace_bytes", &Launch::workspace_bytes)
      .def_property_readonly("refusal", &Launch::refusal)
      .def("__call__", &call_launch);
  module.def("load_blas", [](int release) {
    load_blas_lt(release);  // where it is not there, products are cuBLAS's
    return load_blas(release);
  });
}

}  // namespace sparsedrop
