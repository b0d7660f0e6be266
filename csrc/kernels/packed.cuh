// Spikes in fewer bits, on CUDA: a thread for each byte.
#pragma once
#include <cuda_runtime.h>

#include "packed.h"

namespace snnkern::cuda {

// kValues values, read and written together where memory allows.
template <class T, int kValues>
struct alignas(sizeof(T) * kValues < 16 ? sizeof(T) * kValues : 16) Values {
  T lane[kValues];
};

template <class T, int kValues, bool kUnpack>
__global__ void packing_kernel(const void* from, void* to, int64_t count) {
  using P = Packing<T, kValues>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= P::bytes(count)) return;
  const T* values = static_cast<const T*>(kUnpack ? to : from) + i * kValues;
  const int64_t left = count - i * kValues;
  const bool whole = left >= kValues && reinterpret_cast<uintptr_t>(values) % alignof(Values<T, kValues>) == 0;
  Values<T, kValues> group = {};
  if constexpr (kUnpack) {
    T* const out = const_cast<T*>(values);
    P::unpack(static_cast<const uint8_t*>(from)[i], group.lane);
    if (whole)
      *reinterpret_cast<Values<T, kValues>*>(out) = group;
    else
      for (int v = 0; v < kValues && v < left; ++v) out[v] = group.lane[v];
  } else {
    if (whole)
      group = *reinterpret_cast<const Values<T, kValues>*>(values);
    else
      for (int v = 0; v < kValues && v < left; ++v) group.lane[v] = values[v];
    static_cast<uint8_t*>(to)[i] = P::pack(group.lane);
  }
}

template <class T, int kValues, bool kUnpack>
const char* packing(const void* from, void* to, int64_t count, void* stream) {
  constexpr int kBlock = 256;
  const int64_t blocks = (Packing<T, kValues>::bytes(count) + kBlock - 1) / kBlock;
  if (blocks > INT32_MAX) return "too many values for one launch";
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kBlock);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, packing_kernel<T, kValues, kUnpack>, from, to, count);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace snnkern::cuda
