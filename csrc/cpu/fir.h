// What the paths of upfirdn2d share: where taps meet pixels, filters that are outer products, and the way out.
#pragma once

#include "cpu/upfirdn2d.h"
#include "gencore/integers.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;
// How far ahead, in elements, input rows are asked for.
constexpr int64_t kAhead = 1024;

// a0 b0 a1 b1 ...
GENCORE_INLINE void interleave(vfloat a, vfloat b, vfloat* low, vfloat* high) {
  vint l, h;
  for (int i = 0; i < kLanes; i++) {
    l[i] = i / 2 + (i % 2) * kLanes;
    h[i] = l[i] + kLanes / 2;
  }
  *low = __builtin_shuffle(a, b, l);
  *high = __builtin_shuffle(a, b, h);
}

// The other way round: the even ones of both, and the odd ones.
GENCORE_INLINE void separate(vfloat low, vfloat high, vfloat* even, vfloat* odd) {
  vint e;
  for (int i = 0; i < kLanes; i++) e[i] = 2 * i;
  *even = __builtin_shuffle(low, high, e);
  *odd = __builtin_shuffle(low, high, e + 1);
}

// Along one axis: outputs o = phase + phases q read inputs base + step q + j through the taps first + j up, j < count.
struct Phase {
  int64_t first, base, count;
};
struct Axis {
  int64_t up, down, pad, taps, phases, step;

  GENCORE_INLINE Axis(int64_t up, int64_t down, int64_t pad, int64_t taps) : up(up), down(down), pad(pad), taps(taps) {
    int64_t a = up, b = down;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    phases = up / a;
    step = down / a;
  }
  GENCORE_INLINE Phase phase(int64_t output) const {
    const int64_t start = output * down - pad, first = modulo(-start, up);
    return {first, (start + first) / up, first < taps ? ceil_div(taps - first, up) : 0};
  }
};

// A separable filter of four by four taps, of images as they are, doubled, or at strides of one or two.
template <class C>
struct FourTaps {
  static constexpr int kTaps = 4;
  bool doubled, found;  // found: this is such a filter
  C column_tap[kTaps] = {}, row_tap[kTaps] = {};
  Phase columns[2] = {}, phases[2] = {};  // of even and odd outputs of a doubled image, down and along

  FourTaps(const Upfirdn2dArgs& args, const C* column, const C* row)
      : doubled(args.up_x == 2 && args.up_y == 2 && args.down_x == 1 && args.down_y == 1) {
    const bool others = args.up_x == 1 && args.up_y == 1 && args.down_x <= 2 && args.down_y <= 2;
    found = (doubled || others) && args.filter_height == kTaps && args.filter_width == kTaps;
    if (!found) return;
    for (int i = 0; i < kTaps; i++) column_tap[i] = column[i], row_tap[i] = row[i];
    for (int p = 0; doubled && p < 2; p++) {
      columns[p] = Axis(2, 1, args.pad_y, kTaps).phase(p);
      phases[p] = Axis(2, 1, args.pad_x, kTaps).phase(p);
    }
  }
};

// The outer product that the filter is, if it is one to the precision of C: its column and its row.
template <class C>
bool factorize(const Upfirdn2dArgs& args, C* column, C* row) {
  const int64_t h = args.filter_height, w = args.filter_width;
  int64_t pivot = 0;
  for (int64_t i = 1; i < h * w; i++)
    if (__builtin_fabs(args.taps[i]) > __builtin_fabs(args.taps[pivot])) pivot = i;
  const double largest = args.taps[pivot], tolerance = __builtin_fabs(largest) * (sizeof(C) == 8 ? 0x1p-51 : 0x1p-23);
  const int64_t p = pivot / w, q = pivot % w;
  for (int64_t i = 0; i < h; i++)
    for (int64_t j = 0; j < w; j++) {
      const double product = largest == 0 ? 0 : args.taps[i * w + q] * (args.taps[p * w + j] / largest);
      if (!(__builtin_fabs(product - args.taps[i * w + j]) <= tolerance)) return false;
    }
  for (int64_t i = 0; i < h; i++) column[i] = static_cast<C>(args.taps[i * w + q]);
  for (int64_t j = 0; j < w; j++) row[j] = largest == 0 ? C{0} : static_cast<C>(args.taps[p * w + j] / largest);
  return true;
}

// The epilogue, for one output row.
template <class C>
struct Finish {
  using V = vector_t<C>;
  bool wanted, per_channel;
  const C *scale = nullptr, *bias = nullptr, *noise = nullptr;
  C one_scale, one_bias, slope, gain, limit;

  // Of output row `o` of an image: a plane, or one with all its channels.
  GENCORE_INLINE Finish(const Upfirdn2dArgs& args, bool planar, int64_t image, int64_t o) {
    const FirEpilogue& e = args.epilogue;
    wanted = e.wanted;
    if (!wanted) return;
    per_channel = !planar;
    const int64_t sample = planar ? image / e.channels : image, channel = planar ? image % e.channels : 0;
    scale = e.scale ? static_cast<const C*>(e.scale) + sample * e.channels + channel : nullptr;
    bias = e.bias ? static_cast<const C*>(e.bias) + channel : nullptr;
    noise = e.noise ? static_cast<const C*>(e.noise) + sample * e.noise_batch_stride + o * args.out_width : nullptr;
    one_scale = planar && scale ? *scale : C{1};
    one_bias = planar && bias ? *bias : C{0};
    slope = static_cast<C>(e.slope);
    gain = static_cast<C>(e.gain);
    limit = e.clamp < 0 ? static_cast<C>(__builtin_inf()) : static_cast<C>(e.clamp);
  }

  // `index` counts pixels of the row (planar) or channels; `pixel_noise` is the noise where index counts channels.
  GENCORE_INLINE V operator()(V v, int64_t index, int64_t n, C pixel_noise) const {
    if (!wanted) return v;
    if (per_channel) {
      if (scale) v *= load(scale + index, n);
      v += pixel_noise;
      if (bias) v += load(bias + index, n);
    } else {
      v = v * one_scale;
      if (noise) v += load(noise + index, n);
      v += one_bias;
    }
    v = (v < C{0} ? v * slope : v) * gain;
    const V high = broadcast<V>(limit), low = -high;
    return v > high ? high : (v < low ? low : v);  // NaN passes
  }
};

}  // namespace gencore::GENCORE_ISA
