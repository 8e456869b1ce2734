// One block of output channels for a list of pixels: all taps through the register tile, then scale, bias, residual
// and activation while the sums are still in registers.
#pragma once

#include "cpu/conv_geometry.h"
#include "cpu/conv_moments.h"
#include "gencore/math.h"

namespace gencore::GENCORE_ISA {

// What becomes of the sums of one block of channels.
template <class T>
struct Epilogue {
  using Sum = typename Tile<T>::Sum;
  T* const* out;       // one row pointer a pixel, already at the block's first channel less `channel`
  int64_t channel;     // the block's first channel
  int channels;        // how many of the block's columns are real
  ptrdiff_t residual;  // bytes from an output row to its residual row
  bool has_residual;
  const Sum* const* scale;  // one row of factors a pixel, at channel 0, or null
  int64_t scale_channel;    // the block's first channel there
  const Sum* bias;          // padded to whole vectors, or null
  const Sum* slopes;        // padded to whole vectors, for PReLU
  Activation activation;
  Sum negative_slope;
  // Sums between passes, [pixel][width]: where the panels of all taps exceed the cache, the taps come in several
  // passes.
  Sum* partial;
  bool resume;          // add `partial`
  bool finish;          // apply the epilogue; else leave the sums in `partial`
  Moments<T>* moments;  // where the statistics of what is stored go, or null
  int64_t longest_run = kRun;
};

// One block of channels of a vector, with zeros after the last; null stays null.
template <class T, class Sum = typename Tile<T>::Sum>
inline const Sum* padded(const void* from, int64_t channel, int channels, Sum* to) {
  if (!from) return nullptr;
  std::memset(to, 0, PanelLayout<T>::block * sizeof(Sum));
  std::memcpy(to, static_cast<const Sum*>(from) + channel, channels * sizeof(Sum));
  return to;
}

GENCORE_INLINE vdouble map_lanes(vdouble v, double (*function)(double)) {
  for (int i = 0; i < Tile<double>::lanes; i++) v[i] = function(v[i]);
  return v;
}

// The activations that take a polynomial; the cheap ones stay in the tile.
GENCORE_INLINE bool is_transcendental(Activation a) {
  return a == Activation::tanh || a == Activation::sigmoid || a == Activation::silu;
}
GENCORE_INLINE vfloat transcendental(vfloat v, Activation a) {
  if (a == Activation::tanh) return hyperbolic_tangent(v);
  const vfloat s = sigmoid(v);
  return a == Activation::sigmoid ? s : v * s;
}
GENCORE_INLINE vdouble transcendental(vdouble v, Activation a) {
  if (a == Activation::tanh) return map_lanes(v, ::tanh);
  const vdouble s = 1.0 / (1.0 + map_lanes(-v, ::exp));
  return a == Activation::sigmoid ? s : v * s;
}

template <class T, class V>
GENCORE_INLINE V apply_scale_bias_residual(const Epilogue<T>& e, V v, int64_t pixel, const T* out, int column,
                                           int lanes) {
  if (e.scale) v *= load_lanes(e.scale[pixel] + e.scale_channel + column, lanes);
  if (e.bias) v += load_vector<V>(e.bias + column);
  if (e.has_residual)
    v += load_lanes(reinterpret_cast<const T*>(reinterpret_cast<const char*>(out) + e.residual), lanes);
  return v;
}

template <class T, class V>
GENCORE_INLINE V apply_simple_activation(const Epilogue<T>& e, V v, int column) {
  switch (e.activation) {
    case Activation::relu:
      return v < 0 ? V{} : v;
    case Activation::leaky_relu:
      return v < 0 ? v * e.negative_slope : v;
    case Activation::prelu:
      return v < 0 ? v * load_vector<V>(e.slopes + column) : v;
    default:
      return v;
  }
}

template <class T, bool native, int MR, int NV, bool ahead>
void run_tile(const Segment<T>* segments, int64_t count, int64_t pixel, const Epilogue<T>& e) {
  using V = typename Tile<T>::V;
  constexpr int lanes = Tile<T>::lanes, width = NV * lanes;
  V sum[MR][NV];
  multiply_segments<T, native, MR, NV, ahead>(segments, count, pixel, e.longest_run, sum);
  if (e.resume) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sum[i][j] += load_vector<V>(e.partial + (pixel + i) * width + j * lanes);
  }
  if (!e.finish) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) store_vector(e.partial + (pixel + i) * width + j * lanes, sum[i][j]);
    return;
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++) {
    T* out = e.out[pixel + i] + e.channel;
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      const int n = j + 1 < NV ? lanes : e.channels - j * lanes;
      const V v = apply_scale_bias_residual(e, sum[i][j], pixel + i, out + j * lanes, j * lanes, n);
      sum[i][j] = apply_simple_activation(e, v, j * lanes);
      store_lanes(out + j * lanes, sum[i][j], n);
    }
  }
  if (!e.moments) return;
  if constexpr (sizeof(T) == 2) {  // as rounded
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++)
        sum[i][j] = load_lanes(e.out[pixel + i] + e.channel + j * lanes, j + 1 < NV ? lanes : e.channels - j * lanes);
  }
  add_moments<T, MR, NV>(sum, *e.moments);
}

// Scale, bias, residual and activation from `partial`, for the activations that are too long to stand in every tile.
template <class T>
void finish_rows(const Epilogue<T>& e, int64_t pixels, int vectors) {
  using V = typename Tile<T>::V;
  constexpr int lanes = Tile<T>::lanes;
  for (int64_t pixel = 0; pixel < pixels; pixel++) {
    T* out = e.out[pixel] + e.channel;
    for (int j = 0; j < vectors; j++) {
      const int n = static_cast<int>(smaller(lanes, e.channels - j * lanes));
      V v = load_vector<V>(e.partial + (pixel * vectors + j) * lanes);
      v = apply_scale_bias_residual(e, v, pixel, out + j * lanes, j * lanes, n);
      store_lanes(out + j * lanes, transcendental(v, e.activation), n);
    }
  }
}

template <class T, bool native, int MR, int NV, bool ahead>
void run_rows(const Segment<T>* segments, int64_t count, int64_t pixels, const Epilogue<T>& e) {
  if constexpr (MR > 0) {
    int64_t pixel = 0;
    if constexpr (MR == tile_rows(NV))
      for (; pixel + MR <= pixels; pixel += MR) run_tile<T, native, MR, NV, ahead>(segments, count, pixel, e);
    else if (pixels % tile_rows(NV) == MR)
      run_tile<T, native, MR, NV, ahead>(segments, count, pixels - MR, e);
    run_rows<T, native, MR - 1, NV, ahead>(segments, count, pixels, e);
  }
}

// All pixels of a list against one block of columns. `ahead`: see multiply_segment; kMaxRows more pointers follow.
template <class T, bool native, bool ahead = false>
void run_block(const Segment<T>* segments, int64_t count, int64_t pixels, int vectors, const Epilogue<T>& e) {
  switch (vectors) {
    case 1:
      return run_rows<T, native, tile_rows(1), 1, ahead>(segments, count, pixels, e);
    case 2:
      return run_rows<T, native, tile_rows(2), 2, ahead>(segments, count, pixels, e);
#if defined(__AVX512F__)
    case 3:
      return run_rows<T, native, tile_rows(3), 3, ahead>(segments, count, pixels, e);
    case 4:
      return run_rows<T, native, tile_rows(4), 4, ahead>(segments, count, pixels, e);
#endif
  }
}

}  // namespace gencore::GENCORE_ISA
