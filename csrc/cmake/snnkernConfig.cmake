# find_package(snnkern): the target snnkern::snnkern is the host that fits the libtorch which was found, and its kernels.
# This file lies in lib/cmake/snnkern, of what CMake installed or of the Python package (snnkern.cmake_prefix_path).
include(CMakeFindDependencyMacro)
find_dependency(Torch)
get_filename_component(_snnkern_lib "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
string(REGEX MATCH "^([0-9]+)[.]([0-9]+)" _snnkern_release "${Torch_VERSION}")
set(_snnkern_host "${_snnkern_lib}/libsnnkern_torch${CMAKE_MATCH_1}_${CMAKE_MATCH_2}.so")
if(NOT EXISTS "${_snnkern_host}")
  file(GLOB _snnkern_there RELATIVE "${_snnkern_lib}" "${_snnkern_lib}/libsnnkern_torch*.so")
  set(snnkern_FOUND FALSE)
  set(snnkern_NOT_FOUND_MESSAGE "snnkern has no library for libtorch ${Torch_VERSION}, only ${_snnkern_there}: rebuild it.")
  return()
endif()
if(NOT TARGET snnkern::snnkern)
  add_library(snnkern::kernels SHARED IMPORTED)
  set_target_properties(snnkern::kernels PROPERTIES IMPORTED_LOCATION "${_snnkern_lib}/libsnnkern_kernels.so")
  add_library(snnkern::snnkern SHARED IMPORTED)
  # A program need not name any symbol of the library, which registers its operators when it is loaded.
  set_target_properties(snnkern::snnkern PROPERTIES
    IMPORTED_LOCATION "${_snnkern_host}"
    IMPORTED_LINK_DEPENDENT_LIBRARIES snnkern::kernels
    INTERFACE_LINK_LIBRARIES torch
    INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed")
endif()
