// exp, exp2, log, sin(pi t), cos(pi t), tanh and sigmoid on simd.h's vectors, each within a few units in the last
// place. The double overloads are libm's.
#pragma once

#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

// x = n ln(2) + r with |r| <= ln(2)/2; returns e^r - 1 and leaves n as a float and as an integer.
GENCORE_INLINE vfloat reduced_expm1(vfloat x, vfloat* nf, vint* n) {
  const vfloat clamped = x < -104.0f ? vfloat{} - 104.0f : (x > 89.0f ? vfloat{} + 89.0f : x);
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits of the sum.
  const vfloat shifted = clamped * 1.44269504088896341f + 12582912.0f;
  *n = (vint)shifted - 0x4b400000;
  *nf = shifted - 12582912.0f;
  vfloat r = clamped - *nf * 0.693359375f;
  r = r - *nf * -2.12194440e-4f;
  vfloat p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r;
}

// v * 2^n for -150 <= n <= 128.
GENCORE_INLINE vfloat scale_by_power(vfloat v, vfloat nf, vint n) {
#if defined(__AVX512F__)
  (void)n;
  return (vfloat)_mm512_scalef_ps((__m512)v, (__m512)nf);
#else
  // In two halves, so that neither factor leaves the range of a normal number.
  (void)nf;
  const vint half = n >> 1;
  return v * (vfloat)((half + 127) << 23) * (vfloat)((n - half + 127) << 23);
#endif
}

// e^x; +infinity above 88.73, 0 below about -104, NaN for NaN.
GENCORE_INLINE vfloat exponential(vfloat x) {
  vfloat nf;
  vint n;
  const vfloat q = reduced_expm1(x, &nf, &n);
  return scale_by_power(q + 1.0f, nf, n);
}
GENCORE_INLINE double exponential(double x) { return ::exp(x); }

// 2^x for x <= 128; 0 below about -150, NaN for NaN.
GENCORE_INLINE vfloat exponential2(vfloat x) {
  const vfloat clamped = maximum(vfloat{} - 150.0f, x);
#if defined(__AVX512F__)
  const vfloat nf =
      (vfloat)_mm512_maskz_roundscale_ps(0xffff, (__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vfloat nf = (clamped + 12582912.0f) - 12582912.0f;
#endif
  const vfloat r = clamped - nf;  // |r| <= 1/2
  vfloat p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  return scale_by_power(p * r + 1.0f, nf, __builtin_convertvector(nf, vint));
}

// e^x, and e^x - 1 without the cancellation near x = 0.
GENCORE_INLINE vfloat exponential_and_minus_one(vfloat x, vfloat* minus_one) {
  vfloat nf;
  vint n;
  const vfloat q = reduced_expm1(x, &nf, &n);
  const vfloat power = scale_by_power(vfloat{} + 1.0f, nf, n);
  const vfloat result = scale_by_power(q + 1.0f, nf, n);
  // Near overflow the power alone is infinite while q may be negative: infinity times q would make a NaN.
  *minus_one = x > 80.0f ? result : power * q + (power - 1.0f);
  return result;
}
GENCORE_INLINE double exponential_and_minus_one(double x, double* minus_one) {
  *minus_one = ::expm1(x);
  return ::exp(x);
}

// log(x) for 0 < x < infinity, normal numbers.
GENCORE_INLINE vfloat logarithm(vfloat x) {
  // x = 2^e * m with sqrt(1/2) <= m < sqrt(2).
  const vint bits = (vint)x - 0x3f3504f3;
  const vfloat e = __builtin_convertvector(bits >> 23, vfloat);
  const vfloat m = (vfloat)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const vfloat m2 = m * m;
  vfloat p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * m2 + e * -2.12194440e-4f - m2 * 0.5f;
  return m + p + e * 0.693359375f;
}

// sin(pi t) and cos(pi t) for |t| <= 1: the quadrant is exact, so there is no loss near the zeros.
GENCORE_INLINE void sin_cos_pi(vfloat t, vfloat* sine, vfloat* cosine) {
  const vfloat shifted = t * 2.0f + 12582912.0f;
  const vint quadrant = (vint)shifted;
  const vfloat r = (t - (shifted - 12582912.0f) * 0.5f) * 3.14159265358979f;  // |r| <= pi/4
  const vfloat r2 = r * r;
  vfloat s = r2 * -1.9515295891e-4f + 8.3321608736e-3f;
  s = s * r2 - 1.6666654611e-1f;
  s = s * r2 * r + r;
  vfloat c = r2 * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = c * r2 + 4.166664568298827e-2f;
  c = c * r2 * r2 - r2 * 0.5f + 1.0f;
  const vint swap = (quadrant & 1) != 0;
  const vfloat big_s = swap ? c : s, big_c = swap ? s : c;
  *sine = (vfloat)((vint)big_s ^ ((quadrant & 2) << 30));
  *cosine = (vfloat)((vint)big_c ^ (((quadrant + 1) & 2) << 30));
}

// tanh(x): odd polynomial near 0, where e^2x - 1 would cancel; 1 - 2/(e^2x + 1) elsewhere.
GENCORE_INLINE vfloat hyperbolic_tangent(vfloat x) {
  const vfloat a = (vfloat)((vint)x & 0x7fffffff);
  const vfloat x2 = x * x;
  vfloat p = x2 * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * x2 - 5.37397155531e-2f;
  p = p * x2 + 1.33314422036e-1f;
  p = p * x2 - 3.33332819422e-1f;
  const vfloat small = p * x2 * x + x;
  const vfloat large = 1.0f - 2.0f / (exponential(a + a) + 1.0f);
  const vfloat signed_large = (vfloat)((vint)large | ((vint)x & (int32_t)0x80000000));
  return a < 0.625f ? small : signed_large;
}
GENCORE_INLINE double hyperbolic_tangent(double x) { return ::tanh(x); }

template <class V>
GENCORE_INLINE V sigmoid(V x) {
  return 1.0f / (1.0f + exponential(-x));
}

// log(1 + e^x), without overflow, and without loss where e^x is small.
GENCORE_INLINE vfloat softplus(vfloat x) {
  const vfloat a = (vfloat)((vint)x & 0x7fffffff);
  const vfloat z = exponential(-a), u = 1.0f + z;
  // log(u) z / (u - 1) takes back what rounding u did (Kahan); where u rounds to 1 the logarithm is z.
  const vfloat small = u == 1.0f ? z : logarithm(u) * (z / (u - 1.0f));
  return (x > 0.0f ? x : vfloat{}) + (x == x ? small : x);
}
GENCORE_INLINE double softplus(double x) { return (x > 0 ? x : 0) + (x == x ? ::log1p(::exp(-__builtin_fabs(x))) : x); }

}  // namespace gencore::GENCORE_ISA
