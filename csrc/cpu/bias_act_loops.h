// What bias_act's forward and backward share: the pre-activation, and the constants of the last steps.
#pragma once

#include "cpu/bias_act.h"
#include "cpu/row_tiles.h"
#include "gencore/activation.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kBiasActGrain = 16384;

// The numbers that are the same everywhere.
template <class C>
struct BiasActConstants {
  using V = vector_t<C>;
  C alpha, gain;
  V limit;
  explicit BiasActConstants(const BiasActArgs& args)
      : alpha(static_cast<C>(args.alpha)),
        gain(static_cast<C>(args.gain)),
        limit(broadcast<V>(args.clamp < 0 ? __builtin_inf() : args.clamp)) {}

  template <Activation activation>
  GENCORE_INLINE V apply(V u) const {
    const V v = activate<activation>(u, alpha) * gain;
    return v > limit ? limit : (v < -limit ? -limit : v);  // NaN passes
  }
  // The gradient at u; within the clamp's bounds, these included.
  template <Activation activation>
  GENCORE_INLINE V gradient(V grad_y, V u, bool clamped) const {
    V g = activation_gradient<activation>(grad_y, u, alpha) * gain;
    if (clamped) {
      const V v = activate<activation>(u, alpha) * gain;
      g = v > limit ? V{} : (v < -limit ? V{} : g);
    }
    return g;
  }
};

// Outputs at least this large are written past the caches.
constexpr int64_t kBiasActStreamBytes = 16 << 20;

template <class T>
bool bias_act_streams(const BiasActShape& s, const void* y) {
  return s.numel() * static_cast<int64_t>(sizeof(T)) >= kBiasActStreamBytes &&
         reinterpret_cast<uintptr_t>(y) % 64 == 0 &&
         (s.channels_last ? s.channels : s.pixels) % Vector<compute_t<T>>::lanes == 0;
}
template <class T, class V>
GENCORE_INLINE void put(T* y, V v, int64_t n, bool streaming) {
  if (streaming)
    stream(y, v);
  else
    store(y, v, n);
}

// Where the scale, bias and noise of one sample begin; null where there are none.
template <class C>
struct BiasActRow {
  const C *scale, *bias, *noise;
  BiasActRow(const BiasActArgs& args, int64_t n)
      : scale(args.scale ? static_cast<const C*>(args.scale) + n * args.shape.channels : nullptr),
        bias(static_cast<const C*>(args.bias)),
        noise(args.noise ? static_cast<const C*>(args.noise) + n * args.noise_batch_stride : nullptr) {}
};

// The scale and bias of `vectors` vectors of channels.
template <class C, int vectors>
struct BiasActColumns {
  using V = vector_t<C>;
  V scale[vectors], bias[vectors];
  GENCORE_INLINE BiasActColumns(const BiasActRow<C>& row, int64_t channel, int64_t n) {
    for (int j = 0; j < vectors; j++) {
      scale[j] = row.scale ? load(row.scale + channel + j * Vector<C>::lanes, n) : broadcast<V>(1);
      bias[j] = row.bias ? load(row.bias + channel + j * Vector<C>::lanes, n) : V{};
    }
  }
};

}  // namespace gencore::GENCORE_ISA
