// What module.cpp puts together.

#pragma once

#include <pybind11/pybind11.h>

namespace sparsedrop {

void bind_elementwise(pybind11::module_& module);
void bind_products(pybind11::module_& module);
void bind_programs(pybind11::module_& module);

}  // namespace sparsedrop
