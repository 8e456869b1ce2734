// What the 1-D schemes of winograd_unit.h and winograd_strided.h are made of.
#pragma once

#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

// What the schemes are made of: `values` of inputs d, `filter` of taps, `outputs` y of sums m.

// F(2, 2), interpolated at 0, 1 and infinity: three products for the four terms of two taps a and b.
struct F22 {
  static GENCORE_INLINE void values(vfloat d0, vfloat d1, vfloat d2, vfloat* v) {
    v[0] = d0 - d1;
    v[1] = d1;
    v[2] = d2 - d1;
  }
  static GENCORE_INLINE void filter(vfloat a, vfloat b, vfloat* u) {
    u[0] = a;
    u[1] = a + b;
    u[2] = b;
  }
  static GENCORE_INLINE void outputs(const vfloat* m, vfloat& y0, vfloat& y1) {
    y0 = m[0] + m[1];
    y1 = m[1] + m[2];
  }
};

// F(3, 2), interpolated at 0, 1, -1 and infinity: four products for the six terms of two taps a and b.
struct F32 {
  static GENCORE_INLINE void values(vfloat d0, vfloat d1, vfloat d2, vfloat d3, vfloat* v) {
    v[0] = d0 - d2;
    v[1] = d1 + d2;
    v[2] = d2 - d1;
    v[3] = d3 - d1;
  }
  static GENCORE_INLINE void filter(vfloat a, vfloat b, vfloat* u) {
    u[0] = a;
    u[1] = 0.5f * (a + b);
    u[2] = 0.5f * (a - b);
    u[3] = b;
  }
  static GENCORE_INLINE void outputs(const vfloat* m, vfloat& y0, vfloat& y1, vfloat& y2) {
    const vfloat sum = m[1] + m[2];
    y0 = m[0] + sum;
    y1 = m[1] - m[2];
    y2 = sum + m[3];
  }
  static GENCORE_INLINE void sums_gradient(vfloat y0, vfloat y1, vfloat y2, vfloat* m) {
    const vfloat outer = y0 + y2;
    m[0] = y0;
    m[1] = outer + y1;
    m[2] = outer - y1;
    m[3] = y2;
  }
  static GENCORE_INLINE void filter_gradient(const vfloat* u, vfloat& a, vfloat& b) {
    a = u[0] + 0.5f * (u[1] + u[2]);
    b = u[3] + 0.5f * (u[1] - u[2]);
  }
};

// F(4, 4): F(2, 2) of pairs, each of whose products is an F(2, 2). Nine products for sixteen terms.
struct F44 {
  static GENCORE_INLINE void values(const vfloat (&d)[7], vfloat* v) {
    vfloat outer[3][3];
    for (int i = 0; i < 3; i++) {
      vfloat column[3];
      F22::values(d[i], d[2 + i], d[4 + i], column);
      for (int p = 0; p < 3; p++) outer[p][i] = column[p];
    }
    for (int p = 0; p < 3; p++) F22::values(outer[p][0], outer[p][1], outer[p][2], v + 3 * p);
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[4], vfloat* u) {
    vfloat first[3], second[3];
    F22::filter(g[0], g[2], first);
    F22::filter(g[1], g[3], second);
    for (int p = 0; p < 3; p++) F22::filter(first[p], second[p], u + 3 * p);
  }
  static GENCORE_INLINE void outputs(const vfloat* m, vfloat (&y)[4]) {
    vfloat first[3], second[3];
    for (int p = 0; p < 3; p++) F22::outputs(m + 3 * p, first[p], second[p]);
    F22::outputs(first, y[0], y[2]);
    F22::outputs(second, y[1], y[3]);
  }
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
