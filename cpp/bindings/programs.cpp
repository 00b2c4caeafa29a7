// Programs for Python: a step is a method with names for all that it is given.

#include <pybind11/stl.h>

#include <string>
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
using Ld = std::optional<int64_t>;
using Gathering = std::tuple<At, int, int64_t, At, int64_t, int64_t, int64_t, int, Number>;
using Filling = std::tuple<At, int, int64_t, int64_t, int, At, int, Number, int, int64_t>;
// The first of its numbers among a call's places, and how many there are.
using Across = std::optional<std::pair<int, int64_t>>;

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
                     int64_t rows, int64_t cols, Block block, At live, Number factor, Number keep,
                     std::optional<int> seed) {
  program.masked_copy({DataType(in_dtype), DataType(out_dtype), place(in), in_ld, place(out),
                       blocking(rows, cols, block), place(live), factor, keep, seed});
}

// One of "m", "n" and "k", or empty.
Extent extent(std::string const& name) {
  return name.empty() ? Extent::none : Extent(std::string("mnk").find(name));
}

size_t add_dense_product(Program& program, int64_t m, int64_t n, int64_t k, At a, Ld a_ld,
                         bool a_turned, At b, Ld b_ld, bool b_turned, At out, Ld out_ld, int dtype,
                         int out_dtype, Number alpha, bool accumulates, At bias, At workspace,
                         int handle, std::optional<int> units, std::string const& live,
                         std::string const& whole, uintptr_t handle_now) {
  auto const is_whole = [&](char matrix) { return whole.find(matrix) != std::string::npos; };
  Shape const shape{m,
                    n,
                    k,
                    {a_ld.value_or(a_turned ? m : k), a_turned, is_whole('a')},
                    {b_ld.value_or(b_turned ? k : n), b_turned, is_whole('b')},
                    {out_ld.value_or(n), false, is_whole('o')},
                    extent(live)};
  if (units.has_value() != (shape.live != Extent::none)) {
    throw std::invalid_argument("units are of the live extent: give both, or neither");
  }
  return program.dense_product({shape, place(a), place(b), place(out), DataType(dtype),
                                DataType(out_dtype), alpha, accumulates, place(bias),
                                place(workspace), handle, units, at<void>(handle_now)});
}

std::optional<UnitsPlace> units_place(Across const& of) {
  return of ? std::optional(UnitsPlace{of->first, of->second}) : std::nullopt;
}

void add_gather(Program& program, int dtype, int units, int64_t count, Across const& across,
                std::vector<Gathering> const& arrays) {
  std::vector<Program::Gathered> all;
  for (auto const& [from, from_dtype, from_ld, to, to_ld, rows, cols, along, factor] : arrays) {
    all.push_back({place(from), DataType(from_dtype), from_ld, place(to), to_ld, rows, cols,
                   UnitsAlong(along), factor});
  }
  program.gather(DataType(dtype), {units, count}, units_place(across), all);
}

void add_fill_units(Program& program, int units, int64_t count, Across const& across,
                    std::vector<Filling> const& arrays) {
  std::vector<Program::Filled> all;
  for (auto const& [to, dtype, rows, cols, along, live, live_dtype, factor, dropped, live_ld] :
       arrays) {
    all.push_back({place(to), DataType(dtype), rows, cols, UnitsAlong(along), place(live),
                   DataType(live_dtype), factor, Dropped(dropped), live_ld});
  }
  program.fill_units({units, count}, units_place(across), all);
}

void add_column_sums(Program& program, int dtype, At matrix, int64_t rows, int64_t cols,
                     std::optional<Block> const& block, WordsAt const& words_at, At out,
                     int out_dtype, bool accumulates, Number factor) {
  program.column_sums({DataType(dtype), place(matrix), blocking(rows, cols, block), words(words_at),
                       place(out), DataType(out_dtype), accumulates, factor});
}

void add_pointwise(Program& program, int kind, int activation, int dtype, int64_t rows,
                   int64_t cols, Block block, At a, At b, At grad, At out, At out_b, At live,
                   At bias_a, At bias_b, int bias_dtype, std::optional<int> units, int64_t count) {
  std::optional<UnitsPlace> of_units;
  if (units) {
    of_units = UnitsPlace{*units, count};
  }
  program.pointwise({PointwiseKind(kind), Activation(activation), DataType(dtype), place(a),
                     place(b), place(grad), place(out), place(out_b), blocking(rows, cols, block),
                     place(live), place(bias_a), place(bias_b), DataType(bias_dtype), of_units});
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
           "factor"_a = none, "keep"_a = none, "seed"_a = none)
      .def("dense_product", &add_dense_product, py::kw_only(), "m"_a, "n"_a, "k"_a, "a"_a,
           "a_ld"_a = none, "a_turned"_a = false, "b"_a, "b_ld"_a = none, "b_turned"_a = false,
           "out"_a, "out_ld"_a = none, "dtype"_a, "out_dtype"_a, "alpha"_a = none,
           "accumulates"_a = false, "bias"_a = none, "workspace"_a, "handle"_a, "units"_a = none,
           "live"_a = "", "whole"_a = "", "handle_now"_a)
      .def("gather", &add_gather, py::kw_only(), "dtype"_a, "units"_a, "count"_a, "across"_a = none,
           "arrays"_a)
      .def("fill_units", &add_fill_units, py::kw_only(), "units"_a, "count"_a, "across"_a = none,
           "arrays"_a)
      .def("column_sums", &add_column_sums, py::kw_only(), "dtype"_a, "matrix"_a, "rows"_a,
           "cols"_a, "block"_a = none, "words"_a = none, "out"_a, "out_dtype"_a,
           "accumulates"_a = false, "factor"_a = none)
      .def("pointwise", &add_pointwise, py::kw_only(), "kind"_a, "activation"_a, "dtype"_a,
           "rows"_a, "cols"_a, "block"_a, "a"_a, "b"_a = none, "grad"_a = none, "out"_a,
           "out_b"_a = none, "live"_a = none, "bias_a"_a = none, "bias_b"_a = none,
           "bias_dtype"_a = int(DataType::fp32), "units"_a = none, "count"_a = 0)
      .def("run", &run);
}

}  // namespace sparsedrop
