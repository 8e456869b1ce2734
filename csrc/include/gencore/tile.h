// Register tiles: MR rows by NV vectors of sums stay in registers while the reduction runs, and every matrix-like
// kernel (convolution, its gradients, linear) is a loop around them.
//
//   sum[i][j] += rows[i][k] * panel[k][j]     A rows are read where they lie, one broadcast a number; the panel is
//   packed
//
// AVX-512: 24 sums, so that two 4-cycle multipliers never wait, and at most 16 loads every 12 cycles. The rows come as
// a list of pointers, one list a segment (a filter tap): batch-reduce over taps with no copy of the input. A row that
// lies in the padding points to zeros, and a tile whose rows all do is skipped.
#pragma once

#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

typedef double vdouble __attribute__((vector_size(kLanes * 4)));

// What a tile of T is made of. `pack` numbers of one column stand together in a panel (bfloat16 multiplies in pairs).
template <class T>
struct Tile;
template <>
struct Tile<float> {
  using Sum = float;
  using V = vfloat;
  static constexpr int lanes = kLanes, pack = 1;
};
template <>
struct Tile<double> {
  using Sum = double;
  using V = vdouble;
  static constexpr int lanes = kLanes / 2, pack = 1;
};
template <>
struct Tile<bfloat16> {
  using Sum = float;
  using V = vfloat;
  static constexpr int lanes = kLanes, pack = 2;
};

#if defined(__AVX512F__)
constexpr int kMaxVectors = 4;  // 32 registers
constexpr int tile_rows(int vectors) { return vectors <= 2 ? 12 : vectors == 3 ? 8 : 6; }
#else
constexpr int kMaxVectors = 2;  // 16 registers
constexpr int tile_rows(int vectors) { return vectors == 1 ? 8 : 6; }
#endif
constexpr int kMaxRows = 12;

GENCORE_INLINE vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
GENCORE_INLINE vdouble multiply_add(vdouble a, vdouble b, vdouble c) {
#if defined(__AVX512F__)
  return (vdouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (vdouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

template <class V, class S>
GENCORE_INLINE V load_vector(const S* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class S>
GENCORE_INLINE void store_vector(S* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
template <class V, class S>
GENCORE_INLINE V splat(S value) {
  return value - V{};
}

// --- loads and stores in the storage type, the first n lanes ---------------------------------------------------------

GENCORE_INLINE vfloat load_lanes(const float* p, int n) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  return n == kLanes ? load(p) : load_partial(p, n);
#endif
}
GENCORE_INLINE vfloat load_lanes(const bfloat16* p, int n) { return n == kLanes ? load(p) : load_partial(p, n); }
GENCORE_INLINE vdouble load_lanes(const double* p, int n) {
  vdouble v = {};
  std::memcpy(&v, p, n * sizeof(double));
  return v;
}
GENCORE_INLINE void store_lanes(float* p, vfloat v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  if (n == kLanes)
    store(p, v);
  else
    store_partial(p, v, n);
#endif
}
GENCORE_INLINE void store_lanes(bfloat16* p, vfloat v, int n) {
  if (n == kLanes)
    store(p, v);
  else
    store_partial(p, v, n);
}
GENCORE_INLINE void store_lanes(double* p, vdouble v, int n) { std::memcpy(p, &v, n * sizeof(double)); }

// --- the tile --------------------------------------------------------------------------------------------------------

// One stretch of the reduction: `length` numbers from each row, against length (rounded up to `pack`) panel rows.
template <class T>
struct Segment {
  const T* const* rows;  // one pointer a pixel
  const T* panel;        // [length / pack][NV * lanes][pack]
  const T* zeros;        // what rows in the padding point to
  int64_t offset;        // added to every row
  int64_t length;
};

// `ahead`: the rows come from memory and are read this once, so those of the next tile, whose pointers follow, are
// asked for meanwhile: one line a step, for a processor that sees as many streams as there are rows and no order in
// them.
template <class T, bool native, int MR, int NV, bool ahead = false>
GENCORE_INLINE void multiply_segment(const T* const* rows, int64_t offset, int64_t length, const T* panel,
                                     typename Tile<T>::V (&sum)[MR][NV]) {
  using V = typename Tile<T>::V;
  constexpr int width = NV * Tile<T>::lanes;
  const T* a[MR];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++) a[i] = rows[i] + offset;
  if constexpr (Tile<T>::pack == 1) {
    for (int64_t k = 0; k < length; k++) {
      if constexpr (ahead) __builtin_prefetch(rows[MR + k % 16 * MR / 16] + offset + k / 16 * 16);
      V b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) b[j] = load_vector<V>(panel + k * width + j * Tile<T>::lanes);
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++) {
        const V value = splat<V>(a[i][k]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) sum[i][j] = multiply_add(value, b[j], sum[i][j]);
      }
    }
  } else {
    // Pairs of bfloat16; the panel holds a zero beside the last number of an odd length, and the row must not be read
    // there.
    const int64_t pairs = (length + 1) / 2, whole = length / 2;
    for (int64_t k = 0; k < pairs; k++) {
      vuint b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) b[j] = load_vector<vuint>(panel + 2 * (k * width + j * kLanes));
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++) {
        uint32_t pair = 0;
        std::memcpy(&pair, a[i] + 2 * k, k < whole ? 4 : 2);
        const vuint value = pair - vuint{};
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
#if defined(__AVX512F__)
          if constexpr (native) {
            asm("vdpbf16ps %2, %1, %0" : "+v"(sum[i][j]) : "v"(value), "v"(b[j]));
            continue;
          }
#endif
          sum[i][j] = multiply_add((vfloat)(value << 16), (vfloat)(b[j] << 16), sum[i][j]);
          sum[i][j] = multiply_add((vfloat)(value & 0xffff0000u), (vfloat)(b[j] & 0xffff0000u), sum[i][j]);
        }
      }
    }
  }
}

// How many products meet in one sum before that goes into a sum of sums: the rounding error of K products then grows
// with the root of kRun + K / kRun, not of K. Even, because bfloat16 goes in pairs.
constexpr int64_t kRun = 128;

// sum = the product over all segments, for rows [pixel, pixel + MR), in runs of `longest`.
template <class T, bool native, int MR, int NV, bool ahead = false>
GENCORE_INLINE void multiply_segments(const Segment<T>* segments, int64_t count, int64_t pixel, int64_t longest,
                                      typename Tile<T>::V (&sum)[MR][NV]) {
  using V = typename Tile<T>::V;
  V total[MR][NV];  // in memory: the registers are taken
  bool has_total = false;
  int64_t run = 0;
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] = V{};
  for (int64_t s = 0; s < count; s++) {
    const Segment<T>& segment = segments[s];
    const T* const* rows = segment.rows + pixel;
    bool any = false;
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) any |= rows[i] != segment.zeros;
    for (int64_t k = 0; k < segment.length; k += longest) {
      const int64_t length = segment.length - k < longest ? segment.length - k : longest;
      if (run + length > longest) {
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
          for (int j = 0; j < NV; j++) {
            total[i][j] = has_total ? total[i][j] + sum[i][j] : sum[i][j];
            sum[i][j] = V{};
          }
        has_total = true;
        run = 0;
      }
      // Zeros add nothing, but count: where a run ends must not depend on which rows meet in a tile.
      if (any)
        multiply_segment<T, native, MR, NV, ahead>(rows, segment.offset + k, length,
                                                   segment.panel + k * NV * Tile<T>::lanes, sum);
      run += length;
    }
  }
  if (!has_total) return;
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] += total[i][j];
}

// --- transposition ---------------------------------------------------------------------------------------------------

template <int step>
GENCORE_INLINE void exchange(vfloat& a, vfloat& b) {
  vint low, high;
  for (int e = 0; e < kLanes; e++) {
    low[e] = (e & step) ? kLanes + e - step : e;
    high[e] = (e & step) ? kLanes + e : e + step;
  }
  const vfloat first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
  a = first;
  b = second;
}

template <int step>
GENCORE_INLINE void exchange_all(vfloat (&row)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & step)) exchange<step>(row[i], row[i + step]);
}

// v[0] = the lane sums of v[0], v[1], ..., one a lane.
template <int step>
GENCORE_INLINE void fold(vfloat (&v)[kLanes]) {
  if constexpr (step < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * step) {
      exchange<step>(v[i], v[i + step]);
      v[i] += v[i + step];
    }
    fold<2 * step>(v);
  }
}

// row[i] lane j and row[j] lane i change places.
GENCORE_INLINE void transpose_lanes(vfloat (&row)[kLanes]) {
  exchange_all<1>(row);
  exchange_all<2>(row);
  if constexpr (kLanes > 4) exchange_all<(kLanes > 4 ? 4 : 1)>(row);
  if constexpr (kLanes > 8) exchange_all<(kLanes > 8 ? 8 : 1)>(row);
}

// kLanes by kLanes: to[c][r] = from[r][c].
inline __attribute__((always_inline)) void transpose_square(const float* from, int64_t from_stride, float* to,
                                                            int64_t to_stride) {
  vfloat row[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) row[i] = load(from + i * from_stride);
  transpose_lanes(row);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) store(to + i * to_stride, row[i]);
}

// 2 kLanes by kLanes numbers of two bytes: two rows become one of pairs.
inline __attribute__((always_inline)) void transpose_pairs(const void* from, int64_t from_stride, void* to,
                                                           int64_t to_stride) {
  typedef uint16_t vhalf __attribute__((vector_size(kLanes * 2)));
  const uint16_t* first = static_cast<const uint16_t*>(from);
  vfloat row[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    vhalf low, high;
    std::memcpy(&low, first + 2 * i * from_stride, sizeof low);
    std::memcpy(&high, first + (2 * i + 1) * from_stride, sizeof high);
    row[i] = (vfloat)(__builtin_convertvector(low, vuint) | __builtin_convertvector(high, vuint) << 16);
  }
  transpose_lanes(row);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) std::memcpy(static_cast<uint16_t*>(to) + i * to_stride, &row[i], sizeof row[i]);
}

// to[c * to_stride + r] = from[r * from_stride + c].
template <class T>
inline void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  int64_t row_end = 0, column_end = 0;
  if constexpr (sizeof(T) == 4) {
    row_end = rows - rows % kLanes, column_end = columns - columns % kLanes;
    for (int64_t r = 0; r < row_end; r += kLanes)
      for (int64_t c = 0; c < column_end; c += kLanes)
        transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
  }
  if constexpr (sizeof(T) == 2) {
    row_end = rows - rows % (2 * kLanes), column_end = columns - columns % kLanes;
    for (int64_t r = 0; r < row_end; r += 2 * kLanes)
      for (int64_t c = 0; c < column_end; c += kLanes)
        transpose_pairs(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = r < row_end ? column_end : 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

}  // namespace gencore::GENCORE_ISA
