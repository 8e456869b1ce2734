// Outer products of pixel rows, summed over pixels: the tile of a weight gradient. One side, the panel, runs along the
// vectors; of the other a few channels are broadcast from every pixel.
#pragma once

#include "cpu/conv_geometry.h"

namespace gencore::GENCORE_ISA {

GENCORE_INLINE float to_sum(float v) { return v; }
GENCORE_INLINE double to_sum(double v) { return v; }
GENCORE_INLINE float to_sum(bfloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// sums[i][j] += a[i] * panel[j], of one pixel.
template <class T, int MR, int NV, class V>
GENCORE_INLINE void add_outer(const T* a, const typename Tile<T>::Sum* panel, V (&sum)[MR][NV]) {
  V b[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) b[j] = load_vector<V>(panel + j * Tile<T>::lanes);
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++) {
    const V value = splat<V>(to_sum(a[i]));
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] = multiply_add(value, b[j], sum[i][j]);
  }
}

// The panel of pixel rows, `columns` numbers of each, in `vectors` vectors: [pixel][column], or for the processor's own
// products of bfloat16 [pair of pixels][column][2], in the same memory.
template <class T, bool native>
inline void fill_panel(const T* const* rows, int64_t pixels, int vectors, int64_t columns,
                       typename Tile<T>::Sum* panel) {
  constexpr int lanes = Tile<T>::lanes;
  for (int64_t p = 0; p < pixels; p += native ? 2 : 1)
    for (int j = 0; j < vectors; j++, panel += lanes) {
      const int n = static_cast<int>(smaller(lanes, columns - j * lanes));
      const auto value = load_lanes(rows[p] + j * lanes, n);
      if constexpr (native) {  // a bfloat16 is the upper half of a float
        const vuint next = p + 1 < pixels ? (vuint)load_lanes(rows[p + 1] + j * lanes, n) : vuint{};
        store_vector(panel, (vuint)value >> 16 | next);
      } else {
        store_vector(panel, value);
      }
    }
}

// sums[i][j] += sum over pixels of rows[p][offset + i] * panel[p][j].
template <class T, bool native, int MR, int NV>
void outer_product(const T* const* rows, int64_t offset, int64_t pixels, const typename Tile<T>::Sum* panel,
                   typename Tile<T>::Sum* sums) {
  using V = typename Tile<T>::V;
  constexpr int lanes = Tile<T>::lanes, width = NV * lanes;
  V sum[MR][NV];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] = V{};
#if defined(__AVX512F__)
  if constexpr (native) {
    static constexpr T none[MR] = {};
    for (int64_t p = 0; p < pixels; p += 2) {
      const T *a = rows[p] + offset, *next = p + 1 < pixels ? rows[p + 1] + offset : none;
      vuint b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) b[j] = load_vector<vuint>(panel + p / 2 * width + j * lanes);
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++) {
        const vuint value = (a[i].bits | static_cast<uint32_t>(next[i].bits) << 16) - vuint{};
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) asm("vdpbf16ps %2, %1, %0" : "+v"(sum[i][j]) : "v"(value), "v"(b[j]));
      }
    }
  }
#endif
  for (int64_t p = 0; p < pixels && !native; p++) add_outer<T>(rows[p] + offset, panel + p * width, sum);
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      auto* to = sums + i * width + j * lanes;
      store_vector(to, load_vector<V>(to) + sum[i][j]);
    }
}

template <class T, bool native, int MR, int NV>
void outer_products(const T* const* rows, int64_t offset, int64_t pixels, const typename Tile<T>::Sum* panel,
                    int64_t count, typename Tile<T>::Sum* sums) {
  if constexpr (MR > 0) {
    constexpr int64_t width = NV * Tile<T>::lanes;
    if constexpr (MR == tile_rows(NV)) {
      for (int64_t i = 0; i + MR <= count; i += MR)
        outer_product<T, native, MR, NV>(rows, offset + i, pixels, panel, sums + i * width);
    } else if (count % tile_rows(NV) == MR) {
      outer_product<T, native, MR, NV>(rows, offset + count - MR, pixels, panel, sums + (count - MR) * width);
    }
    outer_products<T, native, MR - 1, NV>(rows, offset, pixels, panel, count, sums);
  }
}

template <class T, bool native>
void run_outer(int vectors, const T* const* rows, int64_t offset, int64_t pixels, const typename Tile<T>::Sum* panel,
               int64_t count, typename Tile<T>::Sum* sums) {
  switch (vectors) {
    case 1:
      return outer_products<T, native, tile_rows(1), 1>(rows, offset, pixels, panel, count, sums);
    case 2:
      return outer_products<T, native, tile_rows(2), 2>(rows, offset, pixels, panel, count, sums);
#if defined(__AVX512F__)
    case 3:
      return outer_products<T, native, tile_rows(3), 3>(rows, offset, pixels, panel, count, sums);
    case 4:
      return outer_products<T, native, tile_rows(4), 4>(rows, offset, pixels, panel, count, sums);
#endif
  }
}

}  // namespace gencore::GENCORE_ISA
