// snnkern._C: what the library knows about its build. The operators live in libsnnkern.so, which has no Python symbol.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "info.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of snnkern.";
  m.def("kernels", &snnkern::compiled_combinations, pybind11::arg("device"));
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = SNNKERN_TORCH;
    info["cuda"] = pybind11::none();
    info["cuda_architectures"] = pybind11::none();
#ifdef SNNKERN_WITH_CUDA
    info["cuda"] = SNNKERN_CUDA_VERSION;
    info["cuda_architectures"] = SNNKERN_CUDA_ARCHITECTURES;
#endif
    info["only"] = pybind11::none();
#ifdef SNNKERN_ONLY
    info["only"] = SNNKERN_ONLY;
#endif
    info["compiler"] = __VERSION__;
    info["cpu_instruction_set"] = snnkern::cpu_instruction_set();
    return info;
  });
}
