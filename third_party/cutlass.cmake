# CUTLASS is header-only here. A user's own checkout wins; otherwise the nvidia-cutlass package,
# found where it is installed without importing it (importing it pulls in scipy and the like).
#
#   SPARSEDROP_CUTLASS_DIR    a directory that holds include/cutlass/cutlass.h

set(SPARSEDROP_CUTLASS_DIR "" CACHE PATH "CUTLASS checkout; empty: the nvidia-cutlass package")

if(SPARSEDROP_CUTLASS_DIR)
  set(cutlass_include "${SPARSEDROP_CUTLASS_DIR}/include")
else()
  find_package(Python COMPONENTS Interpreter REQUIRED)
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import importlib.metadata as m; f = [f for f in m.files('nvidia-cutlass') if str(f).endswith('/include/cutlass/cutlass.h')]; print(f[0].locate().parent.parent)"
    OUTPUT_VARIABLE cutlass_include
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()

if(NOT EXISTS "${cutlass_include}/cutlass/cutlass.h")
  message(
    FATAL_ERROR
      "CUTLASS headers not found at '${cutlass_include}'. Install them with `pip install "
      "nvidia-cutlass==4.2.0.0`, or point -DSPARSEDROP_CUTLASS_DIR at a CUTLASS checkout.")
endif()

add_library(sparsedrop_cutlass INTERFACE)
target_include_directories(sparsedrop_cutlass SYSTEM INTERFACE "${cutlass_include}")
