// snnkern._C: what the libraries know about their build. It is linked to none of them: it finds the host that was
// loaded, by its path, so that only this file depends on the version of Python.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "info.h"

namespace {

const snnkern::Info& info(const std::string& host) {
  void* library = dlopen(host.c_str(), RTLD_NOW | RTLD_NOLOAD);
  void* found = library ? dlsym(library, "snnkern_info") : nullptr;
  if (!found) throw std::runtime_error("snnkern: " + host + " is not loaded");
  return *reinterpret_cast<decltype(&snnkern::snnkern_info)>(found)();
}

std::optional<std::string> text(const char* s) { return s ? std::optional<std::string>(s) : std::nullopt; }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of snnkern.";
  m.def("kernels", [](const std::string& host, const std::string& device) {
    std::vector<std::string> out;
    for (const char *line = info(host).combinations(device.c_str()), *end; *line; line = end + 1) {
      end = std::strchr(line, '\n');
      out.emplace_back(line, end);
    }
    return out;
  });
  m.def("build_info", [](const std::string& host) {
    const snnkern::Info& about = info(host);
    pybind11::dict out;
    out["torch"] = about.torch;
    out["cuda"] = text(about.kernels.cuda);
    out["cuda_architectures"] = text(about.kernels.cuda_architectures);
    out["only"] = text(about.kernels.only);
    out["compiler"] = about.kernels.compiler;
    out["cpu_instruction_set"] = about.cpu_instruction_set;
    return out;
  });
}
