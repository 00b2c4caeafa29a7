# The library as another build of these sources has made it: what is left to compile is the Python
# module, which takes seconds. SPARSEDROP_LIBRARY_DIR is the folder `cpp` of that build, with
# libsparsedrop.a and the header that it was compiled with.

set(archive "${SPARSEDROP_LIBRARY_DIR}/libsparsedrop.a")
set(header "${SPARSEDROP_LIBRARY_DIR}/sparsedrop.h")
foreach(file "${archive}" "${header}")
  if(NOT EXISTS "${file}")
    message(FATAL_ERROR "SPARSEDROP_LIBRARY_DIR=${SPARSEDROP_LIBRARY_DIR} lacks ${file}. Give it the "
                        "folder cpp of a finished build with kernels, or leave it out to compile them.")
  endif()
endforeach()
file(SHA256 "${header}" compiled_with)
file(SHA256 "${CMAKE_CURRENT_SOURCE_DIR}/include/sparsedrop/sparsedrop.h" of_these_sources)
if(NOT compiled_with STREQUAL of_these_sources)
  message(FATAL_ERROR "${archive} was compiled with another sparsedrop.h than that of these sources: "
                      "build it again, or leave SPARSEDROP_LIBRARY_DIR out.")
endif()

add_library(sparsedrop::sparsedrop STATIC IMPORTED)
set_target_properties(
  sparsedrop::sparsedrop
  PROPERTIES IMPORTED_LOCATION "${archive}"
             IMPORTED_LINK_INTERFACE_LANGUAGES CXX
             INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/include"
             INTERFACE_LINK_LIBRARIES CUDA::cudart_static)
