// The 1-D schemes of conv_winograd.h at a stride of 2, in the terms of winograd_unit.h.
#pragma once

#include "cpu/winograd_blocks.h"

namespace gencore::GENCORE_ISA {

namespace {

// Output 2q is d[q-1] g[2] + d[q] g[0], and output 2q+1 is d[q] g[1] (without padding); a tile is two of each.
struct Transposed3 {
  static constexpr int kTaps = 3, kInputs = 3, kStep = 2, kOutputs = 4, kValues = 4, kSums = 5, kPairs = 5;
  static constexpr int kValue[kPairs] = {0, 1, 2, 1, 3}, kSum[kPairs] = {0, 1, 2, 3, 4};
  static constexpr int64_t kLongestRun = 32;
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
  static constexpr int64_t kLongestRun = 32;
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
  static constexpr int64_t kLongestRun = 32;
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
  static constexpr int64_t kLongestRun = 64;
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
  static constexpr int64_t kLongestRun = 64;
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
  static constexpr int64_t kLongestRun = 64;
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

}  // namespace

}  // namespace gencore::GENCORE_ISA
