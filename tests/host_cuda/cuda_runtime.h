// As much of CUDA's run time as multistep.cuh needs, for tests on the host: a launch is a loop over blocks and threads.
#pragma once
#include <math.h>  // not <cmath>: CUDA has exp(float) and the like in the global namespace

inline double sinpi(double x) { return sin(x * 3.14159265358979323846); }
inline double cospi(double x) { return cos(x * 3.14159265358979323846); }

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  unsigned long dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// None: any number of threads fills them, and a launch takes the widest vectors that fit.
inline int host_multiprocessors = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = host_multiprocessors;
  return cudaSuccess;
}

// What the tests choose about a launch, and learn from it.
struct HostLaunch {
  bool run = true;        // false: only note which kernel it would be
  bool reversed = false;  // the last thread first; a real GPU promises no order
  void (*kernel)() = nullptr;
  void* stream = nullptr;
};
inline HostLaunch host_launch;

template <class... Params, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Arguments&&... arguments) {
  host_launch.kernel = reinterpret_cast<void (*)()>(kernel);
  host_launch.stream = config->stream;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const unsigned threads = gridDim.x * blockDim.x;
  if (threads == 0 || blockDim.x > 1024 || config->dynamicSmemBytes > 48 * 1024) return cudaErrorInvalidConfiguration;
  for (unsigned i = 0; i < threads && host_launch.run; ++i) {
    const unsigned thread = host_launch.reversed ? threads - 1 - i : i;
    blockIdx.x = thread / blockDim.x;
    threadIdx.x = thread % blockDim.x;
    kernel(arguments...);  // by value: each thread has its own parameters
  }
  return cudaSuccess;
}
