# The Python module, linked to the library.

if(NOT SPARSEDROP_PYTHON)
  return()
endif()

find_package(Python COMPONENTS Interpreter Development.Module REQUIRED)
find_package(pybind11 CONFIG REQUIRED)
pybind11_add_module(
  _C bindings/module.cpp bindings/elementwise.cpp bindings/products.cpp bindings/launch.cpp
     bindings/program.cpp bindings/programs.cpp bindings/blas.cpp bindings/fixed_products.cpp
     bindings/live_product.cpp)
target_include_directories(_C PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(_C PRIVATE sparsedrop::sparsedrop ${CMAKE_DL_LIBS})
target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL)
list(JOIN sparsedrop_archs ", " archs)
target_compile_definitions(_C PRIVATE "SPARSEDROP_CUDA_ARCHS=\"${archs}\"")
install(TARGETS _C DESTINATION sparsedrop COMPONENT sparsedrop)
