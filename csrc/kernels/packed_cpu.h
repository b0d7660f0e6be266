// Spikes in fewer bits, on the CPU.
#pragma once
#include "packed.h"

namespace snnkern::cpu {

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

}  // namespace snnkern::cpu
