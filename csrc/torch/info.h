// What the library tells about its build; no torch header, so that the Python binding needs none.
#pragma once
#include <string>
#include <vector>

namespace snnkern {

// The combinations compiled for "cpu" or "cuda", as "lif:atan:hard:f32".
__attribute__((visibility("default"))) std::vector<std::string> compiled_combinations(const std::string& device);

// The instruction set that the CPU kernels use here.
__attribute__((visibility("default"))) const char* cpu_instruction_set();

}  // namespace snnkern
