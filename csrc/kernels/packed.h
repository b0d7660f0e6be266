// Spikes in fewer bits: eight to a byte, the first in its lowest bit; or counts up to 255, a byte each.
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

}  // namespace snnkern
