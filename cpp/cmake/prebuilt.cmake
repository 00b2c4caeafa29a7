# The library as another build of these sources has made it: what is left to compile is the Python
# module, which takes seconds. SPARSEDROP_LIBRARY_DIR is the folder `cpp` of that build, with
# libsparsedrop.a, the headers that it was compiled with, and for which GPUs.

set(archive "${SPARSEDROP_LIBRARY_DIR}/libsparsedrop.a")
foreach(file libsparsedrop.a sparsedrop.h live_units.h archs)
  if(NOT EXISTS "${SPARSEDROP_LIBRARY_DIR}/${file}")
    message(FATAL_ERROR "SPARSEDROP_LIBRARY_DIR=${SPARSEDROP_LIBRARY_DIR} lacks ${file}. Give it the "
                        "folder cpp of a finished build with kernels, or leave it out to compile them.")
  endif()
endforeach()
foreach(header sparsedrop.h live_units.h)
  file(SHA256 "${SPARSEDROP_LIBRARY_DIR}/${header}" compiled_with)
  file(SHA256 "${CMAKE_CURRENT_SOURCE_DIR}/include/sparsedrop/${header}" of_these_sources)
  if(NOT compiled_with STREQUAL of_these_sources)
    message(FATAL_ERROR "${archive} was compiled with another ${header} than that of these sources: "
                        "build it again, or leave SPARSEDROP_LIBRARY_DIR out.")
  endif()
endforeach()
file(READ "${SPARSEDROP_LIBRARY_DIR}/archs" sparsedrop_archs)

add_library(sparsedrop::sparsedrop STATIC IMPORTED)
set_target_properties(
  sparsedrop::sparsedrop
  PROPERTIES IMPORTED_LOCATION "${archive}"
             IMPORTED_LINK_INTERFACE_LANGUAGES CXX
             INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/include"
             INTERFACE_LINK_LIBRARIES CUDA::cudart_static)
