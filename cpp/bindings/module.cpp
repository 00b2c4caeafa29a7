// The Python module: the public header with addresses and streams as integers. No torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bind.hpp"
#include "sparsedrop/live_units.h"

namespace py = pybind11;

namespace sparsedrop {
namespace {

// By their names in torch.
constexpr std::pair<char const*, DataType> kDtypes[] = {{"bfloat16", DataType::bf16},
                                                        {"float16", DataType::fp16},
                                                        {"float32", DataType::fp32},
                                                        {"float64", DataType::fp64}};

std::map<std::string, int> dtype_numbers() {
  std::map<std::string, int> numbers;
  for (auto const& [name, dtype] : kDtypes) {
    numbers[name] = int(dtype);
  }
  return numbers;
}

// A family of kernels as Python reads it.
struct BoundArchitecture {
  Architecture architecture;

  std::string name() const { return sparsedrop::name(architecture); }
  bool runs_on(int major, int minor) const {
    return sparsedrop::runs_on(architecture, major, minor);
  }
  Limits limits() const { return sparsedrop::limits(architecture); }
  std::vector<std::string> dtypes() const {
    std::vector<std::string> all;
    for (auto const& [name, dtype] : kDtypes) {
      if (takes(architecture, dtype)) {
        all.push_back(name);
      }
    }
    return all;
  }
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

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The sparsedrop kernels. Addresses and streams are integers.";
  module.attr("CUDA_ARCHS") = SPARSEDROP_CUDA_ARCHS;
  module.attr("MASK_UNIT") = kMaskUnit;
  module.attr("MAX_SUM_COLUMNS") = kMaxSumColumns;
  module.attr("MAX_EXTENT") = kMaxExtent;
  module.attr("DTYPES") = dtype_numbers();
  module.attr("ACTIVATIONS") =
      std::map<std::string, int>{{"none", int(Activation::none)},
                                 {"relu", int(Activation::relu)},
                                 {"gelu", int(Activation::gelu)},
                                 {"silu", int(Activation::silu)},
                                 {"gelu_tanh", int(Activation::gelu_tanh)}};
  module.attr("POINTWISE") =
      std::map<std::string, int>{{"activate", int(PointwiseKind::activate)},
                                 {"activation_grad", int(PointwiseKind::activation_grad)},
                                 {"gate", int(PointwiseKind::gate)},
                                 {"gate_grad", int(PointwiseKind::gate_grad)},
                                 {"add", int(PointwiseKind::add)}};
  module.attr("MAX_ROUNDINGS") = kMaxRoundings;
  module.attr("UNITS_ALONG") = std::map<std::string, int>{{"neither", int(UnitsAlong::neither)},
                                                          {"rows", int(UnitsAlong::rows)},
                                                          {"cols", int(UnitsAlong::cols)},
                                                          {"both", int(UnitsAlong::both)}};
  module.attr("DROPPED") =
      std::map<std::string, int>{{"zeroed", int(Dropped::zeroed)}, {"kept", int(Dropped::kept)}};
  py::class_<BoundArchitecture>(module, "Architecture")
      .def_property_readonly("name", &BoundArchitecture::name)
      .def_property_readonly("dtypes", &BoundArchitecture::dtypes)
      .def_property_readonly("tiles", &BoundArchitecture::tiles)
      .def_property_readonly("limits",
                             [](BoundArchitecture const& a) {
                               Limits const l = a.limits();
                               return std::make_tuple(l.max_split_k, l.max_split_n,
                                                      l.max_split_slots);
                             })
      .def_property_readonly("max_split_k",
                             [](BoundArchitecture const& a) { return a.limits().max_split_k; })
      .def_property_readonly("max_split_n",
                             [](BoundArchitecture const& a) { return a.limits().max_split_n; })
      .def_property_readonly("max_split_slots",
                             [](BoundArchitecture const& a) { return a.limits().max_split_slots; })
      .def("runs_on", &BoundArchitecture::runs_on, py::arg("major"), py::arg("minor"));
  module.attr("ARCHITECTURES") = all_architectures();
  bind_elementwise(module);
  bind_products(module);
  bind_programs(module);
}

}  // namespace sparsedrop
