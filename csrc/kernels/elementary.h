// Number formats and elementary functions, for both devices.
#pragma once
#include <cmath>
#include <cstdint>

#include "multistep.h"

namespace snnkern {

SNNKERN_FN float to_real(float x) { return x; }
SNNKERN_FN double to_real(double x) { return x; }
SNNKERN_FN float to_real(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
SNNKERN_FN float to_real(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const float finite = bit_cast<float>(magnitude) * 0x1p112f;  // exact, subnormals included
  const uint32_t bits = (x.bits & 0x7c00) != 0x7c00 ? bit_cast<uint32_t>(finite) : magnitude | 0x7f800000u;
  return bit_cast<float>(bits | uint32_t(x.bits & 0x8000) << 16);
#endif
}

template <class T>
SNNKERN_FN T from_real(real_t<T> x) {
  return x;
}
template <>
SNNKERN_FN bf16 from_real<bf16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  const uint32_t nan = bits >> 16 | 0x40;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded)};
#endif
}
template <>
SNNKERN_FN f16 from_real<f16>(float x) {
#ifdef __CUDA_ARCH__
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint32_t capped = magnitude < 0x47800000 ? magnitude : 0x47800000;  // 2^16 and above become infinity
  const uint32_t rebased = capped - (112u << 23);
  const uint32_t normal = (rebased + 0xfff + (rebased >> 13 & 1)) >> 13;  // to nearest, ties to even
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(capped) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  return {static_cast<uint16_t>((magnitude > 0x7f800000 ? 0x7e00 : finite) | (bits >> 16 & 0x8000))};
#endif
}

// Two numbers of a 16-bit format in one word, the first in the low half.
template <class T>
SNNKERN_FN void unpack(uint32_t word, float& first, float& second) {
  first = to_real(T{static_cast<uint16_t>(word)});
  second = to_real(T{static_cast<uint16_t>(word >> 16)});
}
template <>
SNNKERN_FN void unpack<bf16>(uint32_t word, float& first, float& second) {
  first = bit_cast<float>(word << 16);
  second = bit_cast<float>(word & 0xffff0000u);
}

template <class T>
SNNKERN_FN uint32_t pack(float first, float second) {
  return from_real<T>(first).bits | uint32_t(from_real<T>(second).bits) << 16;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
SNNKERN_FN uint32_t pack<bf16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
template <>
SNNKERN_FN uint32_t pack<f16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
#endif

namespace math {

#ifdef __CUDACC__

// The library's functions, in the precision of the argument.
template <class R>
SNNKERN_FN R exp(R x) {
  return ::exp(x);
}
template <class R>
SNNKERN_FN R log(R x) {
  return ::log(x);
}
template <class R>
SNNKERN_FN R abs(R x) {
  return ::fabs(x);
}
template <class R>
SNNKERN_FN R floor(R x) {
  return ::floor(x);
}
template <class R>
SNNKERN_FN R round(R x) {
  return ::rint(x);
}
// sin(x + quarters * pi / 2) for |x| up to 1e5. Those of the library, for any angle, hold tables in memory and are
// large.
SNNKERN_FN float sine(float x, int quarters) {
  const float turned = rintf(x * 0.636619772f);  // quarter turns to the nearest axis
  float r = fmaf(turned, -1.57079601e+00f, x);
  r = fmaf(turned, -3.13916473e-07f, r);
  r = fmaf(turned, -5.39030253e-15f, r);
  const int quadrant = static_cast<int>(turned) + quarters;
  const float r2 = r * r;
  const float sin_r = fmaf(fmaf(fmaf(-1.95152959e-4f, r2, 8.33216087e-3f), r2, -1.66666546e-1f), r2 * r, r);
  const float cos_r =
      fmaf(fmaf(fmaf(fmaf(2.44331571e-5f, r2, -1.38873163e-3f), r2, 4.16666457e-2f), r2, -0.5f), r2, 1.0f);
  const float y = quadrant & 1 ? cos_r : sin_r;
  return quadrant & 2 ? -y : y;
}
SNNKERN_FN float sin(float x) { return sine(x, 0); }
SNNKERN_FN float cos(float x) { return sine(x, 1); }
SNNKERN_FN double sin(double x) { return ::sinpi(x * 0.31830988618379067); }
SNNKERN_FN double cos(double x) { return ::cospi(x * 0.31830988618379067); }
template <class R>
SNNKERN_FN R atan(R x) {
  return ::atan(x);
}
template <class R>
SNNKERN_FN R erfc(R x) {
  return ::erfc(x);
}
template <class R>
SNNKERN_FN R sqrt(R x) {
  return ::sqrt(x);
}
template <class R>
SNNKERN_FN R tanh(R x) {
  return ::tanh(x);
}
template <class R>
SNNKERN_FN R pow(R x, R exponent) {
  return ::pow(x, exponent);
}
template <class R>
SNNKERN_FN R softplus(R x) {
  return x > R(20) ? x : ::log1p(::exp(x));
}

#else

// Functions that a compiler can vectorise: branch-free, no table, no library call. The result does not depend on the
// instruction set, because the build forbids contraction. Errors are within 2 units in the last place.

template <class R>
struct Format;

template <>
struct Format<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, in the low bits
  static constexpr float kExpMin = -104.0f, kExpMax = 89.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723212e-6f;
};

template <>
struct Format<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kExpMin = -746.0, kExpMax = 710.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

// 2^n for a whole number n, given as n + kRound; n must be in the range of normal numbers.
template <class R>
SNNKERN_FN R power_of_two(R n_rounded) {
  using F = Format<R>;
  using Bits = typename F::Bits;
  const Bits n = bit_cast<Bits>(n_rounded) - bit_cast<Bits>(F::kRound);
  return bit_cast<R>((n << F::kMantissa) + bit_cast<Bits>(R(1)));
}

// e^r - 1 for |r| <= ln(2) / 2
SNNKERN_FN float expm1_reduced(float r) {
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  return y * (r * r) + r;
}

SNNKERN_FN double expm1_reduced(double r) {
  const double r2 = r * r;  // Taylor to degree 13: the remainder is below 5e-18
  double y = 1.0 / 6227020800;
  y = y * r + 1.0 / 479001600;
  y = y * r + 1.0 / 39916800;
  y = y * r + 1.0 / 3628800;
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  return (y * r + 0.5) * r2 + r;
}

template <class R>
SNNKERN_FN R exp(R x) {
  using F = Format<R>;
  x = x < F::kExpMin ? F::kExpMin : x;  // NaN passes
  x = x > F::kExpMax ? F::kExpMax : x;
  const R n_rounded = x * R(1.44269504088896340736) + F::kRound;
  const R n = n_rounded - F::kRound;
  const R r = (x - n * F::kLn2High) - n * F::kLn2Low;
  // 2^n as two factors, so that the ends of the range (subnormal results, overflow) come out right
  const R half = n * R(0.5) + F::kRound;
  const R rest = (n - (half - F::kRound)) + F::kRound;
  return (expm1_reduced(r) + R(1)) * power_of_two(half) * power_of_two(rest);
}

// ln(1 + f) = f - f^2/2 + f s (..) in the manner of fdlibm, with s = f / (2 + f); f in [sqrt(1/2) - 1, sqrt(2) - 1]
SNNKERN_FN float log_series(float s2) {
  return s2 * (0.66666662693f + s2 * (0.40000972152f + s2 * (0.28498786688f + s2 * 0.24279078841f)));
}

SNNKERN_FN double log_series(double s2) {
  double y = 1.479819860511658591e-01;
  y = y * s2 + 1.531383769920937332e-01;
  y = y * s2 + 1.818357216161805012e-01;
  y = y * s2 + 2.222219843214978396e-01;
  y = y * s2 + 2.857142874366239149e-01;
  y = y * s2 + 3.999999999940941908e-01;
  y = y * s2 + 6.666666666666735130e-01;
  return y * s2;
}

template <class R>
SNNKERN_FN R log(R x) {
  using F = Format<R>;
  using Bits = typename F::Bits;
  constexpr Bits one_mantissa = (Bits(1) << F::kMantissa) - 1;
  constexpr R tiny = std::is_same_v<R, float> ? R(1.17549435e-38f) : R(2.2250738585072014e-308);
  const bool subnormal = x < tiny;
  const R lifted = subnormal ? x * R(Bits(1) << F::kMantissa) : x;
  const Bits bits = bit_cast<Bits>(lifted);
  const Bits one = bit_cast<Bits>(R(1));
  R m = bit_cast<R>((bits & one_mantissa) | one);  // in [1, 2)
  // The exponent as a number, without an integer conversion (not every instruction set has one for 64 bits)
  const Bits exponent = (bits >> F::kMantissa) & ((Bits(1) << (8 * sizeof(R) - 1 - F::kMantissa)) - 1);
  R k = bit_cast<R>(exponent + bit_cast<Bits>(F::kRound)) - F::kRound;
  k = k - R(one >> F::kMantissa) - (subnormal ? R(F::kMantissa) : R(0));
  const bool upper = m > R(1.41421356237309504880);
  m = upper ? m * R(0.5) : m;
  k = upper ? k + R(1) : k;
  const R f = m - R(1);
  const R s = f / (R(2) + f);
  const R half_square = R(0.5) * f * f;
  R y = k * F::kLn2High - ((half_square - (s * (half_square + log_series(s * s)) + k * F::kLn2Low)) - f);
  const R infinity = R(INFINITY);
  y = x == infinity ? infinity : y;
  y = x == R(0) ? -infinity : y;
  return x >= R(0) ? y : R(NAN);
}

// By way of e^2|x| - 1, which keeps the digits of a small x.
template <class R>
SNNKERN_FN R tanh(R x) {
  using F = Format<R>;
  R y = std::fabs(x) * R(2);
  y = y > R(40) ? R(40) : y;  // NaN passes
  const R n_rounded = y * R(1.44269504088896340736) + F::kRound;
  const R n = n_rounded - F::kRound;
  const R r = (y - n * F::kLn2High) - n * F::kLn2Low;
  const R scale = power_of_two(n_rounded);
  const R grown = scale * expm1_reduced(r) + (scale - R(1));
  return std::copysign(grown / (grown + R(2)), x);
}

template <class R>
SNNKERN_FN R softplus(R x) {
  const R e = exp(x), sum = R(1) + e;
  // The logarithm of the rounded sum, for as much as was added.
  const R y = sum == R(1) ? e : log(sum) * (e / (sum - R(1)));
  return x > R(20) ? x : y;
}

template <class R>
SNNKERN_FN R sqrt(R x) {
  return std::sqrt(x);
}
SNNKERN_FN float abs(float x) { return std::fabs(x); }
SNNKERN_FN double abs(double x) { return std::fabs(x); }
template <class R>
SNNKERN_FN R floor(R x) {
  return std::floor(x);
}
template <class R>
SNNKERN_FN R round(R x) {
  return std::rint(x);
}
// Used by few surrogates, or in smooth mode alone: the library's functions, which do not vectorise.
template <class R>
SNNKERN_FN R sin(R x) {
  return std::sin(x);
}
template <class R>
SNNKERN_FN R cos(R x) {
  return std::cos(x);
}
template <class R>
SNNKERN_FN R atan(R x) {
  return std::atan(x);
}
template <class R>
SNNKERN_FN R erfc(R x) {
  return std::erfc(x);
}
template <class R>
SNNKERN_FN R pow(R x, R exponent) {
  return std::pow(x, exponent);
}

#endif  // __CUDACC__

// a / b where the last bits are free, as in a surrogate: within 2 units in the last place. On CUDA an exact float
// division is a call and a branch, which keep the time steps of a loop from overlapping.
template <class R>
SNNKERN_FN R quotient(R a, R b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(R) == 4) {
    R inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
  }
#endif
  return a / b;
}

// a / b to the last bit, but for numbers below 2^-100 and b beyond 2^126. In a loop b is mostly the same for all steps:
// its reciprocal is worked out before, and each step has two corrections of a product in the place of a call and a
// branch.
template <class R>
SNNKERN_FN R divide(R a, R b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(R) == 4) {
    const R inverse = __frcp_rn(b), product = a * inverse;
    const R nearer = fmaf(fmaf(-product, b, a), inverse, product);
    const R q = fmaf(fmaf(-nearer, b, a), inverse, nearer);
    return q == q ? q : product;  // infinite numbers have no remainder
  }
#endif
  return a / b;
}

template <class R>
SNNKERN_FN R sigmoid(R x) {
  return quotient(R(1), R(1) + exp(-x));
}

// x to the whole power N.
template <int N, class R>
SNNKERN_FN R power(R x) {
  if constexpr (N < 0) {
    return quotient(R(1), power<-N>(x));
  } else if constexpr (N == 1) {
    return x;
  } else {
    const R root = power<N / 2>(x), square = root * root;
    return N % 2 ? square * x : square;
  }
}

// Of these, NaN is passed on.
template <class R>
SNNKERN_FN R relu(R x) {
  return x <= R(0) ? R(0) : x;
}
template <class R>
SNNKERN_FN R maximum(R a, R b) {
  return (a > b) | (a != a) ? a : b;
}
template <class R>
SNNKERN_FN R minimum(R a, R b) {
  return (a < b) | (a != a) ? a : b;
}
template <class R>
SNNKERN_FN R clamp(R x, R low, R high) {
  return minimum(maximum(x, low), high);
}

}  // namespace math
}  // namespace snnkern
