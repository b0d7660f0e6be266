// What a kernel of snnkern.auto_cuda.base finds under this name when it runs on the CPU: the index of the thread,
// half2, and the functions that the text of such kernels uses. A launch is a loop over blocks and threads.
#pragma once
#include <math.h>  // not <cmath>: CUDA has expf and the like in the global namespace

#include <cstddef>
#include <cstdio>  // a kernel may call printf
#include <utility>

#include "../elementary.h"

#define __global__ inline __attribute__((always_inline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)

// The functions of the operators' CPU kernels, so that results agree to the bit.
#define expf(x) snnkern::math::exp<float>(x)
#define logf(x) snnkern::math::log<float>(x)

struct dim3 {
  unsigned x, y, z;
};
static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

using half = snnkern::f16;
using __half = half;
struct alignas(4) half2 {
  half x, y;
};
using __half2 = half2;

#define SNNKERN_HALF SNNKERN_FN static
SNNKERN_HALF float __half2float(half a) { return snnkern::to_real(a); }
SNNKERN_HALF half __float2half_rn(float a) { return snnkern::from_real<half>(a); }
SNNKERN_HALF half __float2half(float a) { return __float2half_rn(a); }
SNNKERN_HALF half2 __halves2half2(half a, half b) { return {a, b}; }
SNNKERN_HALF half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
SNNKERN_HALF half2 __float2half2_rn(float a) { return __floats2half2_rn(a, a); }
SNNKERN_HALF half2 __half2half2(half a) { return {a, a}; }
SNNKERN_HALF half __low2half(half2 a) { return a.x; }
SNNKERN_HALF half __high2half(half2 a) { return a.y; }
SNNKERN_HALF float __low2float(half2 a) { return __half2float(a.x); }
SNNKERN_HALF float __high2float(half2 a) { return __half2float(a.y); }

// Lane by lane in float, rounded once. A float holds sums, products and quotients of halves so well that this is the
// nearest half.
#define SNNKERN_UNARY(name, result)                                  \
  SNNKERN_HALF half2 name(half2 p) {                                 \
    const auto f = [](float a) { return result; };                   \
    return __floats2half2_rn(f(__low2float(p)), f(__high2float(p))); \
  }
#define SNNKERN_BINARY(name, result)                                                                  \
  SNNKERN_HALF half2 name(half2 p, half2 q) {                                                         \
    const auto f = [](float a, float b) { return result; };                                           \
    return __floats2half2_rn(f(__low2float(p), __low2float(q)), f(__high2float(p), __high2float(q))); \
  }
SNNKERN_UNARY(__hneg2, -a)
SNNKERN_UNARY(__habs2, fabsf(a))
SNNKERN_UNARY(h2exp, expf(a))
SNNKERN_UNARY(h2log, logf(a))
SNNKERN_UNARY(h2exp2, exp2f(a))
SNNKERN_UNARY(h2log2, log2f(a))
SNNKERN_UNARY(h2sqrt, sqrtf(a))
SNNKERN_UNARY(h2rsqrt, 1.0f / sqrtf(a))
SNNKERN_UNARY(h2rcp, 1.0f / a)
SNNKERN_UNARY(h2sin, sinf(a))
SNNKERN_UNARY(h2cos, cosf(a))
SNNKERN_UNARY(h2floor, floorf(a))
SNNKERN_UNARY(h2ceil, ceilf(a))
SNNKERN_UNARY(h2rint, rintf(a))
SNNKERN_UNARY(h2trunc, truncf(a))
SNNKERN_BINARY(__hadd2, a + b)
SNNKERN_BINARY(__hsub2, a - b)
SNNKERN_BINARY(__hmul2, a* b)
SNNKERN_BINARY(__hadd2_rn, a + b)
SNNKERN_BINARY(__hsub2_rn, a - b)
SNNKERN_BINARY(__hmul2_rn, a* b)
SNNKERN_BINARY(__h2div, a / b)
SNNKERN_BINARY(__hmin2, fminf(a, b))
SNNKERN_BINARY(__hmax2, fmaxf(a, b))
SNNKERN_BINARY(__heq2, a == b ? 1.0f : 0.0f)
SNNKERN_BINARY(__hne2, a<b || a> b ? 1.0f : 0.0f)
SNNKERN_BINARY(__hlt2, a < b ? 1.0f : 0.0f)
SNNKERN_BINARY(__hle2, a <= b ? 1.0f : 0.0f)
SNNKERN_BINARY(__hgt2, a > b ? 1.0f : 0.0f)
SNNKERN_BINARY(__hge2, a >= b ? 1.0f : 0.0f)

SNNKERN_HALF half __fused(half a, half b, half c) {
  // The product is exact in double, and the sum too unless the magnitudes lie far apart.
  return __float2half_rn(static_cast<float>(double(__half2float(a)) * __half2float(b) + __half2float(c)));
}
SNNKERN_HALF half2 __hfma2(half2 a, half2 b, half2 c) { return {__fused(a.x, b.x, c.x), __fused(a.y, b.y, c.y)}; }
SNNKERN_HALF half2 operator+(half2 a, half2 b) { return __hadd2(a, b); }
SNNKERN_HALF half2 operator-(half2 a, half2 b) { return __hsub2(a, b); }
SNNKERN_HALF half2 operator*(half2 a, half2 b) { return __hmul2(a, b); }
SNNKERN_HALF half2 operator/(half2 a, half2 b) { return __h2div(a, b); }
SNNKERN_HALF half2 operator-(half2 a) { return __hneg2(a); }

template <class T>
SNNKERN_FN T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SNNKERN_FN T max(T a, T b) {
  return a < b ? b : a;
}

namespace snnkern {

// Calls a kernel for every thread. Each argument is the address of a value.
template <auto kernel, class... Params, size_t... I>
void run_threads(void (*)(Params...), void* const* arguments, std::index_sequence<I...>) {
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
              kernel(*static_cast<Params*>(arguments[I])...);
}

}  // namespace snnkern

// Placed after the kernel, which may have any name: what snnkern.jit calls. It returns the number of parameters, and
// runs if there are as many arguments.
#define SNNKERN_LAUNCHER(kernel)                                                            \
  template <class... Params>                                                                \
  constexpr auto snnkern_indices(void (*)(Params...)) {                                     \
    return std::index_sequence_for<Params...>();                                            \
  }                                                                                         \
  extern "C" __attribute__((visibility("default"))) size_t snnkern_launch(                  \
      const unsigned* snnkern_size, void* const* snnkern_arguments, size_t snnkern_count) { \
    constexpr auto snnkern_all = snnkern_indices(kernel);                                   \
    if (snnkern_count == snnkern_all.size()) {                                              \
      gridDim = {snnkern_size[0], snnkern_size[1], snnkern_size[2]};                        \
      blockDim = {snnkern_size[3], snnkern_size[4], snnkern_size[5]};                       \
      snnkern::run_threads<kernel>(kernel, snnkern_arguments, snnkern_all);                 \
    }                                                                                       \
    return snnkern_all.size();                                                              \
  }
