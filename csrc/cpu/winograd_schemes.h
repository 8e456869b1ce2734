// The 1-D schemes of conv_winograd.h: which products they take, of what, and which outputs these make.
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

// A filter of kTaps; a tile of kOutputs outputs from kInputs inputs, and kStep inputs to the next tile. Pair p is a
// filter value times the input value kValue[p], and part of the sum kSum[p]. The two gradients are the transposes of
// `outputs` and `filter`.
struct Filter3 {
  static constexpr int kTaps = 3, kInputs = 4, kStep = 2, kOutputs = 2, kValues = 4, kSums = 4, kPairs = 4;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3}, kSum[kPairs] = {0, 1, 2, 3};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 1280 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[0];
    u[1] = 0.5f * ((g[0] + g[2]) + g[1]);
    u[2] = 0.5f * ((g[0] + g[2]) - g[1]);
    u[3] = g[2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    y[0] = (m[0] + m[1]) + m[2];
    y[1] = (m[1] - m[2]) - m[3];
  }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    const vfloat sum = 0.5f * (u[1] + u[2]);
    g[0] = u[0] + sum;
    g[1] = 0.5f * (u[1] - u[2]);
    g[2] = u[3] + sum;
  }
};

// Interpolation at 0, 1, -1, 1/2, -2 and infinity, whose rounding errors are the least of the points that are powers of
// two (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
// 2020, section 5): half of what 0, 1, -1, 2 and -2 give.
struct Filter3Large {
  static constexpr int kTaps = 3, kInputs = 6, kStep = 4, kOutputs = 4, kValues = 6, kSums = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5}, kSum[kPairs] = {0, 1, 2, 3, 4, 5};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    const vfloat odd = d[3] - d[1], even = d[4] - d[2], half = 0.5f * (odd + even);
    v[0] = 0.5f * (even - (d[2] - d[0])) + 0.75f * odd;
    v[1] = half + 0.75f * (d[3] + d[2]);
    v[2] = (even - half) + 0.75f * (d[3] - d[2]);
    v[3] = odd + 0.5f * even;
    v[4] = even - 0.5f * odd;
    v[5] = 0.5f * ((d[5] - d[3]) - odd) + 0.75f * even;
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    const vfloat outer = (2.0f / 3.0f) * (g[0] + g[2]), inner = (2.0f / 3.0f) * g[1];
    u[0] = 2.0f * g[0];
    u[1] = inner + outer;
    u[2] = inner - outer;
    u[3] = (-8.0f / 15.0f) * (4.0f * g[0] + 2.0f * g[1] + g[2]);
    u[4] = (1.0f / 15.0f) * (g[0] - 2.0f * g[1] + 4.0f * g[2]);
    u[5] = 2.0f * g[2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    const vfloat sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = (m[0] + sum) + (m[3] + m[4]);
    y[1] = difference + (0.5f * m[3] - 2.0f * m[4]);
    y[2] = sum + (0.25f * m[3] + 4.0f * m[4]);
    y[3] = (difference + m[5]) + (0.125f * m[3] - 8.0f * m[4]);
  }
};

// Output 2q is d[q-1] g[2] + d[q] g[0], and output 2q+1 is d[q] g[1] (without padding); a tile is two of each.
struct Transposed3 {
  static constexpr int kTaps = 3, kInputs = 3, kStep = 2, kOutputs = 4, kValues = 4, kSums = 5, kPairs = 5;
  static constexpr int kValue[kPairs] = {0, 1, 2, 1, 3}, kSum[kPairs] = {0, 1, 2, 3, 4};
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    F22::values(d[0], d[1], d[2], v);
    v[3] = d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    F22::filter(g[2], g[0], u);
    u[3] = u[4] = g[1];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    F22::outputs(m, y[0], y[2]);
    y[1] = m[3];
    y[3] = m[4];
  }
};

// A stride of 2: two outputs of F(2, 2), whatever the phases add to its three sums.
struct Strided {
  static constexpr int kStep = 4, kOutputs = 2, kSums = 3;
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) { F22::outputs(m, y[0], y[1]); }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[1];
  }
};

// The outer taps meet the even inputs, and the middle one the odd inputs.
struct Strided3 : Strided {
  static constexpr int kTaps = 3, kInputs = 5, kValues = 5, kPairs = 5;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4}, kSum[kPairs] = {0, 0, 1, 2, 2};
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[2];
    v[1] = d[1];
    v[2] = d[2];
    v[3] = d[3];
    v[4] = d[4] - d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[0];
    u[1] = u[3] = g[1];
    u[2] = g[0] + g[2];
    u[4] = g[2];
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    g[0] = u[0] + u[2];
    g[1] = u[1] + u[3];
    g[2] = u[2] + u[4];
  }
};

// Output 2q is d[q-1] g[3] + d[q] g[1], and output 2q+1 is d[q] g[2] + d[q+1] g[0]; a tile is two of each.
struct Transposed4 {
  static constexpr int kTaps = 4, kInputs = 4, kStep = 2, kOutputs = 4, kValues = 5, kSums = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 1, 2, 2, 3, 4}, kSum[kPairs] = {0, 1, 2, 3, 4, 5};
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    F22::values(d[0], d[1], d[2], v);
    v[3] = d[2];
    v[4] = d[3] - d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    F22::filter(g[3], g[1], u);
    u[3] = -g[2];
    u[4] = g[2] + g[0];
    u[5] = g[0];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    F22::outputs(m, y[0], y[2]);
    F22::outputs(m + 3, y[1], y[3]);
  }
};

// Even taps meet the odd inputs and odd taps the even ones; the sums of the two are one.
struct Strided4 : Strided {
  static constexpr int kTaps = 4, kInputs = 6, kValues = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 3, 1, 4, 2, 5}, kSum[kPairs] = {0, 0, 1, 1, 2, 2};
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    for (int i = 0; i < 2; i++) F22::values(d[i], d[2 + i], d[4 + i], v + 3 * i);
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    for (int i = 0; i < 2; i++) {
      u[i] = g[i];
      u[2 + i] = g[i] + g[2 + i];
      u[4 + i] = g[2 + i];
    }
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    for (int i = 0; i < 2; i++) {
      g[i] = u[i] + u[2 + i];
      g[2 + i] = u[2 + i] + u[4 + i];
    }
  }
};

// As Transposed3; a tile is three outputs of each phase.
struct Transposed3Large {
  static constexpr int kTaps = 3, kInputs = 4, kStep = 3, kOutputs = 6, kValues = 7, kSums = 7, kPairs = 7;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5, 6}, kSum[kPairs] = {0, 1, 2, 3, 4, 5, 6};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    F32::values(d[0], d[1], d[2], d[3], v);
    for (int i = 0; i < 3; i++) v[4 + i] = d[1 + i];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    F32::filter(g[2], g[0], u);
    u[4] = u[5] = u[6] = g[1];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    F32::outputs(m, y[0], y[2], y[4]);
    for (int i = 0; i < 3; i++) y[1 + 2 * i] = m[4 + i];
  }
};

// As Transposed4, in the same way.
struct Transposed4Large {
  static constexpr int kTaps = 4, kInputs = 5, kStep = 3, kOutputs = 6, kValues = 8, kSums = 8, kPairs = 8;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5, 6, 7}, kSum[kPairs] = {0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    F32::values(d[0], d[1], d[2], d[3], v);
    F32::values(d[1], d[2], d[3], d[4], v + 4);
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    F32::filter(g[3], g[1], u);
    F32::filter(g[2], g[0], u + 4);
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    F32::outputs(m, y[0], y[2], y[4]);
    F32::outputs(m + 4, y[1], y[3], y[5]);
  }
};

// As Strided4, with three outputs.
struct Strided4Large {
  static constexpr int kTaps = 4, kInputs = 8, kStep = 6, kOutputs = 3, kValues = 8, kSums = 4, kPairs = 8;
  static constexpr int kValue[kPairs] = {0, 4, 1, 5, 2, 6, 3, 7}, kSum[kPairs] = {0, 0, 1, 1, 2, 2, 3, 3};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    for (int i = 0; i < 2; i++) F32::values(d[i], d[2 + i], d[4 + i], d[6 + i], v + 4 * i);
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    vfloat phase[2][4];
    for (int i = 0; i < 2; i++) F32::filter(g[i], g[2 + i], phase[i]);
    for (int p = 0; p < kPairs; p++) u[p] = phase[p % 2][p / 2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    F32::outputs(m, y[0], y[1], y[2]);
  }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    F32::sums_gradient(y[0], y[1], y[2], m);
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    for (int i = 0; i < 2; i++) {
      const vfloat phase[4] = {u[i], u[2 + i], u[4 + i], u[6 + i]};
      F32::filter_gradient(phase, g[i], g[2 + i]);
    }
  }
};

// A line's eight taps: F(3, 2) of fours, each of whose products is an F(4, 4). 36 products for 96 terms.
struct Line8 {
  static constexpr int kTaps = 8, kInputs = 19, kStep = 12, kOutputs = 12, kValues = 36, kSums = 36, kPairs = 36;
  static constexpr int kValue[kPairs] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17,
                                         18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35};
  static constexpr const int (&kSum)[kPairs] = kValue;
  static constexpr int64_t kLongestRun = 16, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    vfloat outer[4][7];
    for (int i = 0; i < 7; i++) {
      vfloat column[4];
      F32::values(d[i], d[4 + i], d[8 + i], d[12 + i], column);
      for (int p = 0; p < 4; p++) outer[p][i] = column[p];
    }
    for (int p = 0; p < 4; p++) F44::values(outer[p], v + 9 * p);
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    vfloat outer[4][4];
    for (int i = 0; i < 4; i++) {
      vfloat column[4];
      F32::filter(g[i], g[4 + i], column);
      for (int p = 0; p < 4; p++) outer[p][i] = column[p];
    }
    for (int p = 0; p < 4; p++) F44::filter(outer[p], u + 9 * p);
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    vfloat outer[4][4];
    for (int p = 0; p < 4; p++) F44::outputs(m + 9 * p, outer[p]);
    for (int i = 0; i < 4; i++) {
      const vfloat column[4] = {outer[0][i], outer[1][i], outer[2][i], outer[3][i]};
      F32::outputs(column, y[i], y[4 + i], y[8 + i]);
    }
  }
};

// Across a line: one of everything.
struct Single {
  static constexpr int kTaps = 1, kInputs = 1, kStep = 1, kOutputs = 1, kValues = 1, kSums = 1, kPairs = 1;
  static constexpr int kValue[kPairs] = {0}, kSum[kPairs] = {0};
  static GENCORE_INLINE void values(const vfloat (&d)[1], vfloat (&v)[1]) { v[0] = d[0]; }
  static GENCORE_INLINE void filter(const vfloat (&g)[1], vfloat (&u)[1]) { u[0] = g[0]; }
  static GENCORE_INLINE void outputs(const vfloat (&m)[1], vfloat (&y)[1]) { y[0] = m[0]; }
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
