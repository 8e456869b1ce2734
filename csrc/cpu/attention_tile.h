// What attention's forward and backward share: products on the register tile whose operands lie in small buffers of the
// compute type, and the ways in and out of those buffers.
#pragma once

#include "cpu/self_attention.h"
#include "gencore/math.h"
#include "gencore/scratch.h"
#include "gencore/tile.h"

namespace gencore::GENCORE_ISA {

// Queries of one block: whole tiles of every height (6, 8, 12) and whole vectors of every width.
constexpr int64_t kQueryBlock = 48;
constexpr double kLog2E = 1.4426950408889634074;

// Not the library's templates: a copy that the compiler leaves out of line would be merged with another instruction
// set's.
GENCORE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
template <class C>
GENCORE_INLINE void fill(C* data, int64_t count, C value) {
  for (int64_t i = 0; i < count; i++) data[i] = value;
}
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Columns of a packed matrix: whole vectors.
template <class C>
constexpr int64_t padded_columns(int64_t columns) {
  return round_up(columns, Tile<C>::lanes);
}

// --- products --------------------------------------------------------------------------------------------------------

// Products that meet in one sum before that goes into a sum of sums: see kRun.
constexpr int64_t kAttentionRun = 64;

template <class C, int NV>
inline void multiply_panel(const C* const* rows, int64_t count, int64_t length, const C* panel, C* to, int64_t stride,
                           bool accumulate) {
  using V = typename Tile<C>::V;
  constexpr int MR = tile_rows(NV), lanes = Tile<C>::lanes;
  for (int64_t r = 0; r < count; r += MR) {
    C* block = to + r * stride;
    bool add = accumulate;
    int64_t k = 0;
    do {
      V sum[MR][NV] = {};
      multiply_segment<C, false, MR, NV>(rows + r, k, least(kAttentionRun, length - k), panel + k * NV * lanes, sum);
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
          C* at = block + i * stride + j * lanes;
          store_vector(at, add ? load_vector<V>(at) + sum[i][j] : sum[i][j]);
        }
      add = true;
      k += kAttentionRun;
    } while (k < length);
  }
}

// to[r][c] = (accumulate ? to[r][c] : 0) + sum over k of rows[r][k] packed[k][c], for `count` rows (which, and the
// memory of `to`, go on to a multiple of the tile's height) and padded columns. `packed` stands in panels of
// kMaxVectors vectors, each [length][panel's columns].
template <class C>
inline void multiply(const C* const* rows, int64_t count, int64_t length, const C* packed, int64_t columns, C* to,
                     int64_t stride, bool accumulate) {
  constexpr int lanes = Tile<C>::lanes;
  for (int64_t c = 0; c < columns; c += kMaxVectors * lanes) {
    const C* panel = packed + c * length;
    switch (least((columns - c) / lanes, kMaxVectors)) {
      case 1:
        multiply_panel<C, 1>(rows, count, length, panel, to + c, stride, accumulate);
        break;
      case 2:
        multiply_panel<C, 2>(rows, count, length, panel, to + c, stride, accumulate);
        break;
#if defined(__AVX512F__)
      case 3:
        multiply_panel<C, 3>(rows, count, length, panel, to + c, stride, accumulate);
        break;
      default:
        multiply_panel<C, 4>(rows, count, length, panel, to + c, stride, accumulate);
#endif
    }
  }
}

template <class C>
inline void point_at_rows(const C** rows, int64_t count, const C* first, int64_t stride) {
  for (int64_t r = 0; r < count; r++) rows[r] = first + r * stride;
}

// --- in and out of the buffers ---------------------------------------------------------------------------------------

template <class T>
struct Strided {
  T* data;
  int64_t row_stride, column_stride;
  Strided transposed() const { return {data, column_stride, row_stride}; }
  T* at(int64_t row) const { return data + row * row_stride; }
};

template <class T>
inline Strided<T> of_batch(const AttentionMatrix& matrix, int64_t batch) {
  return {static_cast<T*>(matrix.data) + batch * matrix.batch_stride, matrix.row_stride, matrix.column_stride};
}

// Elements from one type to another, both contiguous.
template <class From, class To>
GENCORE_INLINE void convert(const From* from, int64_t count, To* to) {
  constexpr int lanes = Vector<compute_t<From>>::lanes;
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = least(lanes, count - i);
    store(to + i, load(from + i, n), n);
  }
}

// A strip of columns passes through this on its way to or from memory that runs over the rows.
constexpr int64_t kStripColumns = 16, kStripRows = 64;

// to[r][c] = the matrix's element in row first + r and column c.
template <class T, class C>
inline void read_block(const Strided<const T>& from, int64_t first, int64_t rows, int64_t columns, C* to,
                       int64_t stride) {
  const T* begin = from.at(first);
  if (from.column_stride == 1) {
    for (int64_t r = 0; r < rows; r++) convert(begin + r * from.row_stride, columns, to + r * stride);
    return;
  }
  alignas(64) C strip[kStripColumns * kStripRows];
  for (int64_t c = 0; c < columns; c += kStripColumns)
    for (int64_t r = 0; r < rows; r += kStripRows) {
      const int64_t width = least(kStripColumns, columns - c), height = least(kStripRows, rows - r);
      for (int64_t i = 0; i < width; i++)
        convert(begin + (c + i) * from.column_stride + r, height, strip + i * kStripRows);
      transpose(strip, kStripRows, to + r * stride + c, stride, width, height);
    }
}

// The way back.
template <class T, class C>
inline void write_block(const C* from, int64_t stride, const Strided<T>& to, int64_t first, int64_t rows,
                        int64_t columns) {
  T* begin = to.at(first);
  if (to.column_stride == 1) {
    for (int64_t r = 0; r < rows; r++) convert(from + r * stride, columns, begin + r * to.row_stride);
    return;
  }
  alignas(64) C strip[kStripColumns * kStripRows];
  for (int64_t c = 0; c < columns; c += kStripColumns)
    for (int64_t r = 0; r < rows; r += kStripRows) {
      const int64_t width = least(kStripColumns, columns - c), height = least(kStripRows, rows - r);
      transpose(from + r * stride + c, stride, strip, kStripRows, height, width);
      for (int64_t i = 0; i < width; i++)
        convert(strip + i * kStripRows, height, begin + (c + i) * to.column_stride + r);
    }
}

// Rows [first, first + rows) of the matrix as panels of kMaxVectors vectors, each [length][columns]; rows past the end
// of the matrix, up to `length`, and columns past its width, up to `padded`, are zero.
template <class T, class C>
inline void pack_panels(const Strided<const T>& from, int64_t first, int64_t rows, int64_t length, int64_t columns,
                        int64_t padded, C* packed) {
  constexpr int64_t widest = kMaxVectors * Tile<C>::lanes;
  for (int64_t c = 0; c < padded; c += widest) {
    const int64_t width = least(widest, padded - c), used = least(width, columns - c);
    C* panel = packed + c * length;
    if (used < width || rows < length) fill(panel, width * length, C{0});
    const Strided<const T> part{from.data + c * from.column_stride, from.row_stride, from.column_stride};
    if (used > 0) read_block(part, first, rows, used, panel, width);
  }
}

template <class C>
inline void add_all(C* sum, int64_t count, const C* data) {
  for (int64_t i = 0; i < count; i++) sum[i] += data[i];
}

template <class C>
inline void scale_all(C* data, int64_t count, C factor) {
  for (int64_t i = 0; i < count; i++) data[i] *= factor;
}

// --- vectors ---------------------------------------------------------------------------------------------------------

GENCORE_INLINE vdouble exponential2(vdouble x) {
  vdouble y;
  for (int i = 0; i < Tile<double>::lanes; i++) y[i] = ::exp2(x[i]);
  return y;
}
GENCORE_INLINE vdouble maximum(vdouble a, vdouble b) { return a > b ? a : b; }

// One lane of the vectors' multiply_add.
template <class C>
GENCORE_INLINE C multiply_add(C a, C b, C c) {
#if defined(__FMA__)
  if constexpr (sizeof(C) == 4) return __builtin_fmaf(a, b, c);
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <int step>
GENCORE_INLINE vfloat with_partners(vfloat v) {
  vint partner;
  for (int i = 0; i < kLanes; i++) partner[i] = i ^ step;
  return maximum(v, (vfloat)__builtin_shuffle(v, partner));
}
GENCORE_INLINE float largest_lane(vfloat v) {
  if constexpr (kLanes > 8) v = with_partners<8>(v);
  if constexpr (kLanes > 4) v = with_partners<4>(v);
  return with_partners<1>(with_partners<2>(v))[0];
}
GENCORE_INLINE double largest_lane(vdouble v) {
  double largest = v[0];
  for (int i = 1; i < Tile<double>::lanes; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

}  // namespace gencore::GENCORE_ISA
