// CUDA's driver, for kernels that are compiled at run time. It is loaded when it is first needed, so this works in a
// library that was built without CUDA.
#pragma once
#include "../kernels/shape.h"

namespace snnkern::driver {

using Function = struct CUfunc_st*;

struct Device {
  int multiprocessors, architecture;  // 90 is sm_90
};

// Each returns an error text, or null.
const char* describe(int device, Device& out);
// The kernel `name` of machine code, on every device of its architecture.
const char* load(const void* cubin, const char* name, Function& out);
const char* launch(Function kernel, const KernelArgs& args, cuda::Shape shape, int device, void* stream);

}  // namespace snnkern::driver
