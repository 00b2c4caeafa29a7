// Products and layers for Python.

#include <pybind11/stl.h>

#include "bindings/bind.hpp"
#include "bindings/call.hpp"
#include "bindings/launch.hpp"
#include "bindings/layer.hpp"

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

Layer make_layer(Launch const& forward, Launch const& grad_x, Launch const& grad_weight,
                 Launch::Block const& block, int64_t col_words_at, int64_t live_at,
                 int bias_dtype) {
  Problem const& product = forward.problem();
  Blocking const blocking{product.m, product.k, block->first, block->second};
  return {{blocking, col_words_at, live_at, DataType(bias_dtype)}, forward, grad_x, grad_weight};
}

void call_layer(Layer const& layer, uintptr_t x, uintptr_t weight, uintptr_t bias,
                uintptr_t rounded_x, uintptr_t rounded_weight, uintptr_t rounded_bias,
                uintptr_t out, uintptr_t mask, uintptr_t workspace, double keep, uint64_t seed,
                int64_t offset, float alpha, uintptr_t stream) {
  layer.forward({at<void const>(x),
                 at<void const>(weight),
                 at<void const>(bias),
                 {at<void>(rounded_x), at<void>(rounded_weight), at<void>(rounded_bias)},
                 at<void>(out),
                 at<char>(mask),
                 at<void>(workspace),
                 {keep, seed, offset},
                 alpha,
                 at<CUstream_st>(stream)});
}

void call_layer_backward(Layer const& layer, uintptr_t grad, uintptr_t x, uintptr_t weight,
                         uintptr_t mask, uintptr_t grad_x, uintptr_t grad_weight,
                         uintptr_t grad_bias, uintptr_t workspace, float alpha,
                         bool accumulates_weight, bool accumulates_bias, uintptr_t stream) {
  layer.backward({at<void const>(grad), at<void const>(x), at<void const>(weight),
                  at<char const>(mask), at<void>(grad_x), at<void>(grad_weight),
                  at<void>(grad_bias), at<void>(workspace), alpha, accumulates_weight,
                  accumulates_bias, at<CUstream_st>(stream)});
}

DenseLayer make_dense_layer(int64_t rows, int64_t cols, int64_t outputs, Launch::Block const& block,
                            int x_dtype, int dtype, int weight_dtype, int bias_dtype, int device) {
  return {{rows, cols, block->first, block->second},
          outputs,
          DataType(x_dtype),
          DataType(dtype),
          DataType(weight_dtype),
          DataType(bias_dtype),
          device};
}

void call_dense_layer(DenseLayer const& layer, uintptr_t x, uintptr_t masked_x, uintptr_t weight,
                      uintptr_t rounded_weight, uintptr_t bias, uintptr_t out, uintptr_t live,
                      double keep, uint64_t seed, int64_t offset, double alpha,
                      uintptr_t blas_handle, bool allows_narrow_sums, uintptr_t stream) {
  layer.forward({at<void const>(x),
                 at<void>(masked_x),
                 at<void const>(weight),
                 at<void>(rounded_weight),
                 at<void const>(bias),
                 at<void>(out),
                 at<uint8_t>(live),
                 {keep, seed, offset},
                 alpha,
                 {at<void>(blas_handle), allows_narrow_sums},
                 at<CUstream_st>(stream)});
}

void call_dense_layer_backward(DenseLayer const& layer, uintptr_t grad, uintptr_t masked_x,
                               uintptr_t weight, uintptr_t live, uintptr_t product,
                               uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias,
                               double alpha, bool accumulates_weight, bool accumulates_bias,
                               uintptr_t blas_handle, bool allows_narrow_sums, uintptr_t stream) {
  layer.backward({at<void const>(grad),
                  at<void const>(masked_x),
                  at<void const>(weight),
                  at<uint8_t const>(live),
                  at<void>(product),
                  at<void>(grad_x),
                  at<void>(grad_weight),
                  at<void>(grad_bias),
                  alpha,
                  accumulates_weight,
                  accumulates_bias,
                  {at<void>(blas_handle), allows_narrow_sums},
                  at<CUstream_st>(stream)});
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
  py::class_<Layer>(module, "Layer", py::module_local())
      .def(py::init(&make_layer), py::kw_only(), py::arg("forward"), py::arg("grad_x"),
           py::arg("grad_weight"), py::arg("block"), py::arg("col_words_at"), py::arg("live_at"),
           py::arg("bias_dtype"))
      .def_property_readonly("forward_workspace_bytes", &Layer::forward_workspace_bytes)
      .def_property_readonly("backward_workspace_bytes", &Layer::backward_workspace_bytes)
      .def("forward", &call_layer)
      .def("backward", &call_layer_backward);
  py::class_<DenseLayer>(module, "DenseLayer", py::module_local())
      .def(py::init(&make_dense_layer), py::kw_only(), py::arg("rows"), py::arg("cols"),
           py::arg("outputs"), py::arg("block"), py::arg("x_dtype"), py::arg("dtype"),
           py::arg("weight_dtype"), py::arg("bias_dtype"), py::arg("device"))
      .def("forward", &call_dense_layer)
      .def("backward", &call_dense_layer_backward);
  module.def("load_blas", &load_blas);
}

}  // namespace sparsedrop
