// What a host tells of itself and of the kernels; no torch header, so that the Python binding needs none.
#pragma once
#include "../kernels/multistep.h"

namespace snnkern {

struct Info {
  const char* torch;  // whose headers it was compiled with
  Build kernels;
  const char* cpu_instruction_set;  // that the CPU kernels use here
  // The combinations compiled for "cpu" or "cuda", as "lif:atan:hard:f32", each with a newline.
  const char* (*combinations)(const char* device);
};
extern "C" SNNKERN_EXPORT const Info* snnkern_info();

}  // namespace snnkern
