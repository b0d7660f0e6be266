// Spikes in fewer bits: eight to a byte, the first in its lowest bit; or counts up to 255, a byte each. Loops for the
// CPU, kernels for CUDA.
#pragma once
#include "elementary.h"
#include "multistep.h"

namespace snnkern {

// kValues to a byte: 8, or 1. `count` values in memory; the last byte may hold fewer, and the rest of its bits are 0.
template <class T, int kValues>
struct Packing {
  static SNNKERN_FN int64_t bytes(int64_t count) { return (count + kValues - 1) / kValues; }

  // Byte i from the values at `from`, of which there are kValues.
  static SNNKERN_FN uint8_t pack(const T* from) {
    if constexpr (kValues == 1) return static_cast<uint8_t>(static_cast<int>(to_real(from[0])));
    unsigned byte = 0;
    for (int v = 0; v < kValues; ++v) byte |= unsigned(to_real(from[v]) != 0) << v;
    return static_cast<uint8_t>(byte);
  }
  static SNNKERN_FN void unpack(uint8_t byte, T* to) {
    using R = real_t<T>;
    for (int v = 0; v < kValues; ++v) to[v] = from_real<T>(kValues == 1 ? R(byte) : R(byte >> v & 1));
  }
};

#ifdef __CUDACC__

namespace cuda {

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
  packing_kernel<T, kValues, kUnpack>
      <<<static_cast<unsigned>(blocks), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(from, to, count);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cuda

#else

namespace cpu {

// A stream is CUDA's.
template <class T, int kValues, bool kUnpack>
const char* packing(const void* from, void* to, int64_t count, void*) {
  using P = Packing<T, kValues>;
  const T* values = static_cast<const T*>(kUnpack ? to : from);
  const int64_t whole = count / kValues;
  for (int64_t i = 0; i < P::bytes(count); ++i) {
    T group[kValues] = {};
    const int64_t in_byte = i < whole ? kValues : count - i * kValues;
    if constexpr (kUnpack) {
      P::unpack(static_cast<const uint8_t*>(from)[i], group);
      memcpy(static_cast<T*>(to) + i * kValues, group, in_byte * sizeof(T));
    } else {
      memcpy(group, values + i * kValues, in_byte * sizeof(T));
      static_cast<uint8_t*>(to)[i] = P::pack(group);
    }
  }
  return nullptr;
}

}  // namespace cpu

#endif

}  // namespace snnkern
