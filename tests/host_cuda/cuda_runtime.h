// As much of CUDA's run time as multistep.cuh needs, for tests on the host: a launch is a loop over blocks and threads.
#pragma once
#include <math.h>  // not <cmath>: CUDA has exp(float) and the like in the global namespace

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

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

inline dim3 gridDim, blockDim;
inline thread_local dim3 blockIdx, threadIdx;

// Of the block that runs.
#define __shared__ static
class HostBarrier {
 public:
  void start(unsigned threads) { threads_ = threads; }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == threads_) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  unsigned threads_ = 0, waiting_ = 0, round_ = 0;
};
inline HostBarrier host_barrier;
inline void __syncthreads() { host_barrier.wait(); }
alignas(16) inline char host_shared[128 << 10];  // what a launch asks for; aligned as there

// A warp's threads wait for one another where they vote.
constexpr unsigned kHostWarp = 32, kHostThreads = 1024;
inline HostBarrier host_warp_barrier[kHostThreads / kHostWarp];
inline bool host_vote[kHostThreads];
inline unsigned __ballot_sync(unsigned, bool vote) {
  const unsigned warp = threadIdx.x / kHostWarp;
  host_vote[threadIdx.x] = vote;
  host_warp_barrier[warp].wait();
  unsigned all = 0;
  for (unsigned lane = 0; lane < kHostWarp; ++lane) all |= unsigned(host_vote[warp * kHostWarp + lane]) << lane;
  host_warp_barrier[warp].wait();
  return all;
}
inline int __popc(unsigned word) { return __builtin_popcount(word); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

using cudaStream_t = struct CUstream_st*;
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  unsigned long dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  // A launch that has some, or asks for memory of a block, waits for the threads of a block: it needs them all at once.
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

// None: any number of threads fills them, and a launch takes the widest vectors that fit.
inline int host_multiprocessors = 0;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? sizeof(host_shared)
           : which == cudaDevAttrMultiProcessorCount        ? host_multiprocessors
                                                            : 0;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  *clusters = 0;
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
  if (config->attrs || config->dynamicSmemBytes) {
    if (config->dynamicSmemBytes > sizeof(host_shared)) return cudaErrorInvalidConfiguration;
    host_barrier.start(blockDim.x * blockDim.y);
    for (HostBarrier& warp : host_warp_barrier) warp.start(kHostWarp);
    for (unsigned block = 0; block < gridDim.x * gridDim.y && host_launch.run; ++block) {
      std::vector<std::thread> threads;
      for (unsigned thread = 0; thread < blockDim.x * blockDim.y; ++thread) {
        threads.emplace_back([=] {
          blockIdx = dim3(block % gridDim.x, block / gridDim.x);
          threadIdx = dim3(thread % blockDim.x, thread / blockDim.x);
          kernel(arguments...);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    return cudaSuccess;
  }
  const unsigned threads = gridDim.x * blockDim.x;
  if (threads == 0 || blockDim.x > kHostThreads) return cudaErrorInvalidConfiguration;
  for (unsigned i = 0; i < threads && host_launch.run; ++i) {
    const unsigned thread = host_launch.reversed ? threads - 1 - i : i;
    blockIdx.x = thread / blockDim.x;
    threadIdx.x = thread % blockDim.x;
    kernel(arguments...);  // by value: each thread has its own parameters
  }
  return cudaSuccess;
}
