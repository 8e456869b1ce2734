// The 1-D schemes of conv_winograd.h at a stride of 1: which products they take, of what, and which outputs these make.
#pragma once

#include "cpu/winograd_blocks.h"

namespace gencore::GENCORE_ISA {

namespace {

// A filter of kTaps; a tile of kOutputs outputs from kInputs inputs, and kStep inputs to the next tile. Pair p is a
// filter value times the input value kValue[p], and part of the sum kSum[p]. The two gradients are the transposes of
// `outputs` and `filter`.
struct Filter3 {
  static constexpr int kTaps = 3, kInputs = 4, kStep = 2, kOutputs = 2, kValues = 4, kSums = 4, kPairs = 4;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3}, kSum[kPairs] = {0, 1, 2, 3};
  static constexpr int64_t kLongestRun = 64;
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

// F(4, 3) interpolated at 0, 1, -1, infinity and modulo x^2 + 1, whose two roots i and -i make one complex product:
// three real ones (Meng and Brothers, "Efficient Winograd convolution via integer arithmetic", 2019, section 3). Seven
// products for twelve terms, all of whose coefficients are 0, 1 or -1, so the rounding error is that of Filter3.
struct Filter3Large {
  static constexpr int kTaps = 3, kInputs = 6, kStep = 4, kOutputs = 4, kValues = 7, kSums = 7, kPairs = 7;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5, 6}, kSum[kPairs] = {0, 1, 2, 3, 4, 5, 6};
  static constexpr int64_t kLongestRun = 32;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    const vfloat odd = d[1] + d[3], even = d[2] + d[4], p = d[3] - d[1], q = d[4] - d[2];
    v[0] = d[0] - d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = q + p;
    v[4] = q - p;
    v[5] = p;
    v[6] = d[5] - d[1];
  }
  // u[3] + u[4] i is the filter modulo x^2 + 1, and u[5] their sum, each turned to go with v.
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    const vfloat outer = 0.25f * (g[0] + g[2]), inner = 0.25f * g[1], real = 0.5f * (g[0] - g[2]);
    u[0] = g[0];
    u[1] = outer + inner;
    u[2] = outer - inner;
    u[3] = real;
    u[4] = -0.5f * g[1];
    u[5] = u[4] - real;
    u[6] = g[2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    const vfloat sum = m[1] + m[2], difference = m[1] - m[2], real = m[3] + m[5], imaginary = m[4] + m[5];
    y[0] = m[0] + (sum + real);
    y[1] = difference + imaginary;
    y[2] = sum - real;
    y[3] = (difference - imaginary) + m[6];
  }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    const vfloat even = y[0] + y[2], odd = y[1] + y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = y[0] - y[2];
    m[4] = y[1] - y[3];
    m[5] = m[3] + m[4];
    m[6] = y[3];
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    const vfloat outer = 0.25f * (u[1] + u[2]), real = 0.5f * (u[3] - u[5]);
    g[0] = (u[0] + outer) + real;
    g[1] = 0.25f * (u[1] - u[2]) - 0.5f * (u[4] + u[5]);
    g[2] = (u[6] + outer) - real;
  }
};

// Interpolation at 0, 1, -1, 1/2, -2 and infinity, whose rounding errors are the least of the points that are powers of
// two (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
// 2020, section 5): half of what 0, 1, -1, 2 and -2 give.
struct Filter3Inexact {
  static constexpr int kTaps = 3, kInputs = 6, kStep = 4, kOutputs = 4, kValues = 6, kSums = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5}, kSum[kPairs] = {0, 1, 2, 3, 4, 5};
  static constexpr int64_t kLongestRun = 64;
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

// A line's eight taps: F(3, 2) of fours, each of whose products is an F(4, 4). 36 products for 96 terms.
struct Line8 {
  static constexpr int kTaps = 8, kInputs = 19, kStep = 12, kOutputs = 12, kValues = 36, kSums = 36, kPairs = 36;
  static constexpr int kValue[kPairs] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17,
                                         18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35};
  static constexpr const int (&kSum)[kPairs] = kValue;
  static constexpr int64_t kLongestRun = 16;
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
