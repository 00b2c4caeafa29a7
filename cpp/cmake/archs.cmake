# Which GPUs a build is for, in CMake's notation: SPARSEDROP_CUDA_ARCHS -> sparsedrop_archs.
#
#   all       every architecture that kernels are written for: machine code of 8.0 (which 8.6 and 8.9
#             run too), 9.0a and 12.0, and PTX of 8.0 for what comes later
#   native    this machine's GPUs
#   auto      native where a GPU is found, else all
#   a list    such as "86-real" or "80;90a-real"; 90a stands for the Hopper kernels, whatever else is
#             in it for those of 8.0

set(SPARSEDROP_CUDA_ARCHS auto CACHE STRING "GPUs to compile for: auto, all, native, or a list")

# The capabilities of this machine's GPUs, such as "90a-real;86-real"; empty where there are none.
function(sparsedrop_native_archs result)
  set(found "")
  find_program(NVIDIA_SMI nvidia-smi)
  mark_as_advanced(NVIDIA_SMI)
  if(NVIDIA_SMI)
    execute_process(COMMAND ${NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
    if(status EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${capabilities}")
      list(TRANSFORM found REPLACE "\\." "")
      list(TRANSFORM found REPLACE "^90$" "90a")
      list(TRANSFORM found APPEND "-real")
      list(REMOVE_DUPLICATES found)
    endif()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

set(sparsedrop_archs "${SPARSEDROP_CUDA_ARCHS}")
if(sparsedrop_archs MATCHES "^(auto|native)$")
  sparsedrop_native_archs(sparsedrop_archs)
  if(NOT sparsedrop_archs AND SPARSEDROP_CUDA_ARCHS STREQUAL "native")
    message(FATAL_ERROR "SPARSEDROP_CUDA_ARCHS is native, but nvidia-smi finds no GPU here. Name "
                        "what to compile for, such as 86-real, or all.")
  endif()
endif()
if(NOT sparsedrop_archs OR sparsedrop_archs STREQUAL "all")
  set(sparsedrop_archs 80 90a-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND sparsedrop_archs 120-real)
  endif()
endif()
foreach(arch IN LISTS sparsedrop_archs)
  if(NOT arch MATCHES "^([0-9]+)[a-z]?(-real|-virtual)?$" OR CMAKE_MATCH_1 LESS 80)
    message(FATAL_ERROR "SPARSEDROP_CUDA_ARCHS has '${arch}': kernels are for compute capability 8.0 "
                        "and later, written as 80, 86-real or 90a-real. Other GPUs need a build with "
                        "SPARSEDROP_CUDA=OFF.")
  endif()
endforeach()

# Machine code of 9.0a runs on exactly that capability; the kernels of 8.0 are for all others.
set(sparsedrop_sm90_archs ${sparsedrop_archs})
list(FILTER sparsedrop_sm90_archs INCLUDE REGEX "^90a")
set(sparsedrop_sm80_archs ${sparsedrop_archs})
list(FILTER sparsedrop_sm80_archs EXCLUDE REGEX "^90a")
message(STATUS "sparsedrop: compiling for ${sparsedrop_archs}")
