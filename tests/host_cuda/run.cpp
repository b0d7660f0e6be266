// The generated CUDA kernels behind a C interface, for ctypes; see test_cuda_kernels_on_host.py.
#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <iterator>

#include "generated/registry.h"
#include "kernels/multistep.h"

using namespace snnkern;

extern "C" {

size_t host_cuda_sizeof_args() { return sizeof(KernelArgs); }

// Runs a kernel as the host does; returns its error text, or null. surrogate -1: the forward pass, which needs none.
const char* host_cuda(int neuron, int surrogate, int pass, int reset, int dtype, const KernelArgs* args, void* stream) {
  host_launch.kernel = nullptr;
  const Row<CudaKernel>* row = cuda::kTable[neuron][surrogate + 1];
  const CudaKernel kernel = row ? row->kernel[pass][reset][dtype] : nullptr;
  return kernel ? kernel(*args, stream) : "this build leaves out the kernel";
}

size_t host_cuda_sizeof_recurrent() { return sizeof(RecurrentArgs); }

// What feeds the spikes of a neuron back to it; null where this build has none.
const CudaRecurrence* host_cuda_recurrence(int neuron, int pass, int reset, int dtype) {
  const Row<const CudaRecurrence*>* row = cuda::kRecurrenceTable[neuron][0];
  return row ? row->kernel[pass][reset][dtype] : nullptr;
}

void host_cuda_mode(bool run, bool reversed) {
  host_launch.run = run;
  host_launch.reversed = reversed;
}

void host_cuda_multiprocessors(int count) { host_multiprocessors = count; }

void* host_cuda_last_stream() { return host_launch.stream; }

// The name of the kernel that the last call launched, with its template arguments; empty if it launched none.
const char* host_cuda_last_kernel() {
  static char* name = nullptr;
  Dl_info symbol = {};
  if (!host_launch.kernel || !dladdr(reinterpret_cast<void*>(host_launch.kernel), &symbol)) return "";
  if (!symbol.dli_sname) return "";
  size_t size = 0;
  free(name);
  name = abi::__cxa_demangle(symbol.dli_sname, nullptr, &size, nullptr);
  return name ? name : "";
}

}  // extern "C"
