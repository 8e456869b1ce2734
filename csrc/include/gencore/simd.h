// Vectors of float, on the compiler's vector extensions: 16 lanes with AVX-512, 8 with AVX2, 4 elsewhere (SSE2, NEON).
// The same kernel text serves `double` too, as vectors of one lane: float64 is there to be right, not to be fast.
//
// Everything lives in namespace gencore::GENCORE_ISA, because inline functions compiled for one instruction set must
// never be merged by the linker with those compiled for another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gencore/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef GENCORE_ISA
#error "csrc/cpu files are compiled with -DGENCORE_ISA=..."
#endif

#define GENCORE_INLINE inline __attribute__((always_inline))
// After a lambda's parameters: the loop helpers call their bodies from several places, and each call must inline.
#define GENCORE_LAMBDA __attribute__((always_inline))

namespace gencore::GENCORE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vhalf __attribute__((vector_size(kLanes * 2)));

template <class C>
struct Vector;
template <>
struct Vector<float> {
  using type = vfloat;
  static constexpr int lanes = kLanes;
};
template <>
struct Vector<double> {
  using type = double;
  static constexpr int lanes = 1;
};
template <class C>
using vector_t = typename Vector<C>::type;

template <class V>
GENCORE_INLINE V broadcast(double value);
template <>
GENCORE_INLINE vfloat broadcast<vfloat>(double value) {
  return static_cast<float>(value) - vfloat{};
}
template <>
GENCORE_INLINE double broadcast<double>(double value) {
  return value;
}

// --- load and store, converting --------------------------------------------------------------------------------

GENCORE_INLINE vfloat load(const float* p) {
  vfloat v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GENCORE_INLINE double load(const double* p) { return *p; }
GENCORE_INLINE vfloat load(const bfloat16* p) {
  vhalf h;
  std::memcpy(&h, p, sizeof h);
  return (vfloat)(__builtin_convertvector(h, vuint) << 16);
}

GENCORE_INLINE void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
GENCORE_INLINE void store(double* p, double v) { *p = v; }
GENCORE_INLINE void store(bfloat16* p, vfloat v) {
  vuint bits = (vuint)v;
  vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = (v == v) ? rounded : vuint{} + 0x7fc0u;  // NaN stays NaN
  vhalf h = __builtin_convertvector(rounded, vhalf);
  std::memcpy(p, &h, sizeof h);
}

#if defined(__AVX512F__)
GENCORE_INLINE vfloat load(const float16* p) {
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GENCORE_INLINE void store(float16* p, vfloat v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
GENCORE_INLINE vfloat load(const float16* p) {
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
GENCORE_INLINE void store(float16* p, vfloat v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// IEEE half by integer arithmetic. A half's exponent, moved to a float's place, is 112 too small: one multiplication
// by 2^112 mends it, subnormals included; the way back adds the rounding bit by hand.
GENCORE_INLINE vfloat load(const float16* p) {
  vhalf h;
  std::memcpy(&h, p, sizeof h);
  vuint w = __builtin_convertvector(h, vuint);
  vuint magnitude = (w & 0x7fffu) << 13;
  vfloat scaled = (vfloat)magnitude * 0x1p112f;
  vuint special = magnitude | 0x7f800000u;  // infinity and NaN keep their payload
  vuint bits = ((w & 0x7c00u) == 0x7c00u) ? special : (vuint)scaled;
  return (vfloat)(bits | ((w & 0x8000u) << 16));
}
GENCORE_INLINE void store(float16* p, vfloat v) {
  vuint bits = (vuint)v, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal halves: rebias by 112 and round to nearest even on 13 bits; a carry runs into the exponent, as it should.
  vuint normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 leaves the rounded mantissa in the low bits of the sum.
  vuint subnormal = (vuint)((vfloat)magnitude + 0.5f) - 0x3f000000u;
  vuint result = (magnitude < 0x38800000u) ? subnormal : normal;
  result = (magnitude >= 0x47800000u) ? vuint{} + 0x7c00u : result;
  result = (magnitude > 0x7f800000u) ? vuint{} + 0x7e00u : result;
  vhalf h = __builtin_convertvector(result | sign, vhalf);
  std::memcpy(p, &h, sizeof h);
}
#endif

// The first n lanes only (0 <= n <= lanes): the rest reads as zero, and is not written.
#if defined(__AVX512F__)
GENCORE_INLINE vfloat load_partial(const float* p, int64_t n) {
  return (vfloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
GENCORE_INLINE void store_partial(float* p, vfloat v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
#endif
template <class T>
GENCORE_INLINE auto load_partial(const T* p, int64_t n) {
  constexpr int lanes = Vector<compute_t<T>>::lanes;
  T buffer[lanes] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}
template <class T, class V>
GENCORE_INLINE void store_partial(T* p, V v, int64_t n) {
  T buffer[Vector<compute_t<T>>::lanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(T));
}

// Whole vectors at n == lanes (a constant in every hot loop), partial ones at its end.
template <class T>
GENCORE_INLINE auto load(const T* p, int64_t n) {
  return n == Vector<compute_t<T>>::lanes ? load(p) : load_partial(p, n);
}
template <class T, class V>
GENCORE_INLINE void store(T* p, V v, int64_t n) {
  if (n == Vector<compute_t<T>>::lanes)
    store(p, v);
  else
    store_partial(p, v, n);
}

// v in the first n lanes, zero in the others.
GENCORE_INLINE vfloat first_lanes(vfloat v, int64_t n) {
  vint index;
  for (int i = 0; i < kLanes; i++) index[i] = i;
  return (vfloat)((vint)v & (index < static_cast<int32_t>(n)));
}
GENCORE_INLINE double first_lanes(double v, int64_t n) { return n > 0 ? v : 0.0; }

// Past the caches: for outputs larger than the cache, this spares the read that an ordinary store begins with.
// p must be aligned to the vector.
GENCORE_INLINE void stream(float* p, vfloat v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}
GENCORE_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
GENCORE_INLINE void stream(T* p, vector_t<compute_t<T>> v) {
  store(p, v);
}

// --- arithmetic --------------------------------------------------------------------------------------------------

GENCORE_INLINE vfloat maximum(vfloat a, vfloat b) { return a > b ? a : b; }
GENCORE_INLINE double maximum(double a, double b) { return a > b ? a : b; }
GENCORE_INLINE vfloat minimum(vfloat a, vfloat b) { return a < b ? a : b; }
GENCORE_INLINE double minimum(double a, double b) { return a < b ? a : b; }

GENCORE_INLINE vfloat square_root(vfloat v) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
  return (vfloat)_mm_sqrt_ps((__m128)v);
#else
  vfloat r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_sqrtf(v[i]);
  return r;
#endif
}
GENCORE_INLINE double square_root(double v) { return __builtin_sqrt(v); }

// The sum of `count` numbers, half of them added to the other half at a time.
template <int count>
GENCORE_INLINE double sum_by_halves(const double* numbers) {
  if constexpr (count == 1) {
    return numbers[0];
  } else {
    typedef double Half __attribute__((vector_size(count * sizeof(double) / 2)));
    Half low, high;
    std::memcpy(&low, numbers, sizeof low);
    std::memcpy(&high, numbers + count / 2, sizeof high);
    low += high;
    double sums[count / 2];
    std::memcpy(sums, &low, sizeof low);
    return sum_by_halves<count / 2>(sums);
  }
}

// The sum of the lanes, in double and in a fixed order.
GENCORE_INLINE double horizontal_sum(vfloat v) {
  typedef double vdouble __attribute__((vector_size(kLanes * sizeof(double))));
  const vdouble wide = __builtin_convertvector(v, vdouble);
  double lanes[kLanes];
  std::memcpy(lanes, &wide, sizeof wide);
  return sum_by_halves<kLanes>(lanes);
}
GENCORE_INLINE double horizontal_sum(double v) { return v; }

// --- loops -------------------------------------------------------------------------------------------------------

// body(i, n, slot) for the vectors of [0, count): n lanes from element i. Four independent slots hide the latency of
// sums: keep one accumulator for each.
template <int lanes, class Body>
GENCORE_INLINE void for_each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    body(i, int64_t{lanes}, 0);
    body(i + lanes, int64_t{lanes}, 1);
    body(i + 2 * lanes, int64_t{lanes}, 2);
    body(i + 3 * lanes, int64_t{lanes}, 3);
  }
  for (; i + lanes <= count; i += lanes) body(i, int64_t{lanes}, 0);
  if (i < count) body(i, count - i, 1);
}

// body<vectors>(column, n) for tiles of a row of `columns` numbers, `wide` vectors each, or half as many, or one:
// narrow rows are read about as they lie. The last vector of a tile has n lanes.
template <int lanes, int wide, class Body>
GENCORE_INLINE void for_each_column_tile(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + wide * lanes <= columns; c += wide * lanes) body.template operator()<wide>(c, int64_t{lanes});
  for (; c + wide / 2 * lanes <= columns; c += wide / 2 * lanes) body.template operator()<wide / 2>(c, int64_t{lanes});
  for (; c < columns; c += lanes) body.template operator()<1>(c, columns - c < lanes ? columns - c : int64_t{lanes});
}

}  // namespace gencore::GENCORE_ISA
