# What C++ users find: the archive, the header, and a package for find_package(sparsedrop).

include(CMakePackageConfigHelpers)

set(library_dir ${sparsedrop_prefix}lib)
set(include_dir ${sparsedrop_prefix}include)
set(cmake_dir ${library_dir}/cmake/sparsedrop)
install(FILES $<TARGET_FILE:sparsedrop::sparsedrop> DESTINATION ${library_dir} COMPONENT sparsedrop)
install(DIRECTORY include/sparsedrop DESTINATION ${include_dir} COMPONENT sparsedrop)
configure_package_config_file(
  cmake/sparsedropConfig.cmake.in sparsedropConfig.cmake INSTALL_DESTINATION ${cmake_dir}
  PATH_VARS library_dir include_dir)
write_basic_package_version_file(sparsedropConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sparsedropConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/sparsedropConfigVersion.cmake
        DESTINATION ${cmake_dir} COMPONENT sparsedrop)
