// Programs for Python: a step is a method with names for all that it is given.

#include <pybind11/stl.h>

#include <tuple>
#include <variant>

#include "bindings/bind.hpp"
#include "bindings/call.hpp"
#include "bindings/program.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace sparsedrop {
namespace {

// The number of an address, or that and bytes from there.
using At = std::optional<std::variant<int, std::pair<int, int64_t>>>;
using WordsAt = std::optional<std::pair<At, At>>;
using Block = std::pair<int32_t, int32_t>;
using Array = std::tuple<At, int, At, int64_t, Number>;

Place place(At const& at) {
  if (!at) {
    return std::nullopt;
  }
  if (auto const* number = std::get_if<int>(&*at)) {
    return std::pair<int, int64_t>(*number, 0);
  }
  return std::get<std::pair<int, int64_t>>(*at);
}

WordPlaces words(WordsAt const& at) {
  if (!at) {
    return std::nullopt;
  }
  return std::pair<Place, Place>(place(at->first), place(at->second));
}

Blocking blocking(int64_t rows, int64_t cols, std::optional<Block> const& block) {
  Block const of = block.value_or(Block(0, 0));
  return {rows, cols, of.first, of.second};
}

void add_draw(Program& program, int64_t rows, int64_t cols, Block block, At live,
              WordsAt const& words_at, int keep, int seed) {
  program.draw(blocking(rows, cols, block), place(live), words(words_at), keep, seed);
}

void add_round(Program& program, int dtype, std::vector<Array> const& arrays) {
  std::vector<Program::Rounded> all;
  for (auto const& [from, from_dtype, to, count, factor] : arrays) {
    all.push_back({place(from), DataType(from_dtype), place(to), count, factor});
  }
  program.round(DataType(dtype), all);
}

void add_product(Program& program, Launch const& launch, At a, At b, At d, WordsAt const& a_words,
                 WordsAt const& b_words, WordsAt const& d_words, Number alpha, At bias,
                 At workspace, bool accumulates) {
  program.product(launch, {place(a), place(b), place(d), words(a_words), words(b_words),
                           words(d_words), alpha, place(bias), place(workspace), accumulates});
}

void add_masked_copy(Program& program, int in_dtype, At in, int64_t in_ld, int out_dtype, At out,
                     int64_t rows, int64_t cols, Block block, At live, Number factor) {
  program.masked_copy({DataType(in_dtype), DataType(out_dtype), place(in), in_ld, place(out),
                       blocking(rows, cols, block), place(live), factor});
}

void add_dense_product(Program& program, int64_t m, int64_t n, int64_t k, At a, bool a_turned, At b,
                       bool b_turned, At out, int dtype, int out_dtype, Number alpha,
                       bool accumulates, int handle) {
  program.dense_product({m, n, k, place(a), a_turned, place(b), b_turned, place(out),
                         DataType(dtype), DataType(out_dtype), alpha, accumulates, handle});
}

void add_column_sums(Program& program, int dtype, At matrix, int64_t rows, int64_t cols,
                     std::optional<Block> const& block, WordsAt const& words_at, At out,
                     int out_dtype, bool accumulates, Number factor) {
  program.column_sums({DataType(dtype), place(matrix), blocking(rows, cols, block), words(words_at),
                       place(out), DataType(out_dtype), accumulates, factor});
}

void add_pointwise(Program& program, int kind, int activation, int dtype, int64_t rows,
                   int64_t cols, Block block, At a, At b, At grad, At out, At out_b, At live) {
  program.pointwise({PointwiseKind(kind), Activation(activation), DataType(dtype), place(a),
                     place(b), place(grad), place(out), place(out_b), blocking(rows, cols, block),
                     place(live)});
}

void run(Program const& program, std::vector<uint64_t> const& places,
         std::vector<double> const& numbers, uintptr_t stream) {
  program.run(places, numbers, at<CUstream_st>(stream));
}

}  // namespace

void bind_programs(py::module_& module) {
  auto const none = py::none();
  // Local to the module: two builds may be loaded side by side.
  py::class_<Program>(module, "Program", py::module_local())
      .def(py::init<int>(), "device"_a)
      .def("draw", &add_draw, py::kw_only(), "rows"_a, "cols"_a, "block"_a, "live"_a,
           "words"_a = none, "keep"_a, "seed"_a)
      .def("round", &add_round, py::kw_only(), "dtype"_a, "arrays"_a)
      .def("product", &add_product, "launch"_a, py::kw_only(), "a"_a, "b"_a, "d"_a,
           "a_words"_a = none, "b_words"_a = none, "d_words"_a = none, "alpha"_a = none,
           "bias"_a = none, "workspace"_a = none, "accumulates"_a = false)
      .def("masked_copy", &add_masked_copy, py::kw_only(), "in_dtype"_a, "source"_a, "source_ld"_a,
           "out_dtype"_a, "out"_a, "rows"_a, "cols"_a, "block"_a, "live"_a = none,
           "factor"_a = none)
      .def("dense_product", &add_dense_product, py::kw_only(), "m"_a, "n"_a, "k"_a, "a"_a,
           "a_turned"_a = false, "b"_a, "b_turned"_a = false, "out"_a, "dtype"_a, "out_dtype"_a,
           "alpha"_a = none, "accumulates"_a = false, "handle"_a)
      .def("column_sums", &add_column_sums, py::kw_only(), "dtype"_a, "matrix"_a, "rows"_a,
           "cols"_a, "block"_a = none, "words"_a = none, "out"_a, "out_dtype"_a,
           "accumulates"_a = false, "factor"_a = none)
      .def("pointwise", &add_pointwise, py::kw_only(), "kind"_a, "activation"_a, "dtype"_a,
           "rows"_a, "cols"_a, "block"_a, "a"_a, "b"_a = none, "grad"_a = none, "out"_a,
           "out_b"_a = none, "live"_a = none)
      .def("run", &run);
}

}  // namespace sparsedrop
