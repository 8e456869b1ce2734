// The gradient of batch norm with activation. With u = (x - mean) scale + bias (+ residual), g = grad_y act'(u), and
// sums over the count elements of a channel,
//   grad_bias = sum g,   grad_weight = invstd sum g (x - mean),   grad_residual = g,
//   grad_x = scale (g - mean(g) - (x - mean) invstd^2 mean(g (x - mean)))   in training, scale g in evaluation.
// The activation's gradient is worked out anew from x in both passes, so that nothing but x is kept from the forward.
#include "cpu/batch_norm_loops.h"

namespace gencore::GENCORE_ISA {

namespace {

// Per-channel constants, after the two sums: grad_x = scale (g - mean_g - (x - mean) slope_x).
template <class C>
struct Constants {
  C* scale;
  C* mean_g;
  C* slope_x;
};

// g at element i, and the deviation from the mean.
template <class T, Activation activation, class C = compute_t<T>>
struct Gradient {
  using V = vector_t<C>;
  const T *grad_y, *x, *residual;
  C negative_slope;

  explicit GENCORE_INLINE Gradient(const BatchNormActBackwardArgs& args)
      : grad_y(static_cast<const T*>(args.grad_y)),
        x(static_cast<const T*>(args.x)),
        residual(static_cast<const T*>(args.residual)),
        negative_slope(static_cast<C>(args.negative_slope)) {}

  GENCORE_INLINE V operator()(int64_t i, int64_t n, V mean, V scale, V bias, V* deviation) const {
    *deviation = load(x + i, n) - mean;
    V u = *deviation * scale + bias;
    if (residual) u += load(residual + i, n);
    return activation_gradient<activation>(load(grad_y + i, n), u, negative_slope);
  }
};

// Sums of g and of g (x - mean) over [begin, end) of one channel. Lanes past a run's end have grad_y = 0, hence g = 0.
template <class T, Activation activation, class C = compute_t<T>>
void planar_sums(const BatchNormActBackwardArgs& args, const BatchNormShape& shape, const C* scales, int64_t channel,
                 int64_t begin, int64_t end, double* sum_g, double* sum_gd) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Gradient<T, activation> gradient(args);
  const V mean = broadcast<V>(static_cast<const C*>(args.mean)[channel]), scale = broadcast<V>(scales[channel]);
  const V bias = broadcast<V>(channel_bias<C>(args.bias, channel));
  V g[4] = {}, gd[4] = {};
  for_each_run(shape, channel, begin, end, [&](int64_t offset, int64_t count) GENCORE_LAMBDA {
    for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
      V d;
      const V v = gradient(offset + i, n, mean, scale, bias, &d);
      g[slot] += v;
      gd[slot] += v * d;
    });
  });
  *sum_g += horizontal_sum((g[0] + g[1]) + (g[2] + g[3]));
  *sum_gd += horizontal_sum((gd[0] + gd[1]) + (gd[2] + gd[3]));
}

template <class T, Activation activation, class C = compute_t<T>>
void row_sums(const BatchNormActBackwardArgs& args, const C* scales, int64_t begin, int64_t end, C* sum_g, C* sum_gd) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const int64_t channels = args.shape.channels;
  const Gradient<T, activation> gradient(args);
  for_each_tile<lanes>(channels, [&]<int vectors>(int64_t column, int64_t n) GENCORE_LAMBDA {
    V mean[vectors], scale[vectors], bias[vectors], g[vectors] = {}, gd[vectors] = {};
    for (int j = 0; j < vectors; j++) {
      const int64_t c = column + j * lanes;
      mean[j] = load(static_cast<const C*>(args.mean) + c, n);
      scale[j] = load(scales + c, n);
      bias[j] = args.bias ? load(static_cast<const C*>(args.bias) + c, n) : V{};
    }
    for (int64_t r = begin; r < end; r++)
      for (int j = 0; j < vectors; j++) {
        V d;
        const V v = gradient(r * channels + column + j * lanes, n, mean[j], scale[j], bias[j], &d);
        g[j] += v;
        gd[j] += v * d;
      }
    for (int j = 0; j < vectors; j++) {
      store(sum_g + column + j * lanes, g[j], n);
      store(sum_gd + column + j * lanes, gd[j], n);
    }
  });
}

template <class C>
void finish_channel(const BatchNormActBackwardArgs& args, const Constants<C>& k, int64_t channel, double sum_g,
                    double sum_gd) {
  const double invstd = 1.0 / __builtin_sqrt(static_cast<const C*>(args.var)[channel] + args.eps);
  const double count = static_cast<double>(args.shape.count());
  static_cast<C*>(args.grad_bias)[channel] = static_cast<C>(sum_g);
  static_cast<C*>(args.grad_weight)[channel] = static_cast<C>(sum_gd * invstd);
  k.mean_g[channel] = static_cast<C>(args.training ? sum_g / count : 0.0);
  k.slope_x[channel] = static_cast<C>(args.training ? sum_gd * invstd * invstd / count : 0.0);
}

template <class T, Activation activation, class C = compute_t<T>>
void planar_apply(const BatchNormActBackwardArgs& args, const BatchNormShape& shape, const Constants<C>& k,
                  int64_t channel, int64_t begin, int64_t end, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Gradient<T, activation> gradient(args);
  T* grad_x = static_cast<T*>(args.grad_x);
  T* grad_residual = static_cast<T*>(args.grad_residual);
  const V mean = broadcast<V>(static_cast<const C*>(args.mean)[channel]), scale = broadcast<V>(k.scale[channel]);
  const V bias = broadcast<V>(channel_bias<C>(args.bias, channel));
  const V mean_g = broadcast<V>(k.mean_g[channel]), slope_x = broadcast<V>(k.slope_x[channel]);
  for_each_run(shape, channel, begin, end, [&](int64_t offset, int64_t count) GENCORE_LAMBDA {
    auto value = [&](int64_t i, int64_t n) GENCORE_LAMBDA {
      V d;
      const V g = gradient(i, n, mean, scale, bias, &d);
      if (grad_residual) store(grad_residual + i, g, n);
      return scale * (g - mean_g - d * slope_x);
    };
    if (streaming)
      for (int64_t i = offset; i < offset + count; i += lanes) stream(grad_x + i, value(i, lanes));
    else
      for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int)
                                        GENCORE_LAMBDA { store(grad_x + offset + i, value(offset + i, n), n); });
  });
}

template <class T, Activation activation, class C = compute_t<T>>
void row_apply(const BatchNormActBackwardArgs& args, const Constants<C>& k, int64_t begin, int64_t end,
               bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const int64_t channels = args.shape.channels;
  const Gradient<T, activation> gradient(args);
  T* grad_x = static_cast<T*>(args.grad_x);
  T* grad_residual = static_cast<T*>(args.grad_residual);
  for_each_tile<lanes>(channels, [&]<int vectors>(int64_t column, int64_t n) GENCORE_LAMBDA {
    V mean[vectors], scale[vectors], bias[vectors], mean_g[vectors], slope_x[vectors];
    for (int j = 0; j < vectors; j++) {
      const int64_t c = column + j * lanes;
      mean[j] = load(static_cast<const C*>(args.mean) + c, n);
      scale[j] = load(k.scale + c, n);
      bias[j] = args.bias ? load(static_cast<const C*>(args.bias) + c, n) : V{};
      mean_g[j] = load(k.mean_g + c, n);
      slope_x[j] = load(k.slope_x + c, n);
    }
    for (int64_t r = begin; r < end; r++)
      for (int j = 0; j < vectors; j++) {
        const int64_t i = r * channels + column + j * lanes;
        V d;
        const V g = gradient(i, n, mean[j], scale[j], bias[j], &d);
        if (grad_residual) store(grad_residual + i, g, n);
        const V value = scale[j] * (g - mean_g[j] - d * slope_x[j]);
        if (streaming)
          stream(grad_x + i, value);
        else
          store(grad_x + i, value, n);
      }
  });
}

template <class T, Activation activation, class C = compute_t<T>>
void backward(const BatchNormActBackwardArgs& args) {
  const BatchNormShape shape = simplified(args.shape);
  const int64_t chunks = batch_norm_chunks(shape), channels = shape.channels;
  C* partial = static_cast<C*>(args.partial);
  C* after = partial + 2 * chunks * channels;
  const Constants<C> k{after, after + channels, after + 2 * channels};
  const bool planar = shape.inner > 1;
  const int64_t bytes = shape.numel() * static_cast<int64_t>(sizeof(T));
  const bool streaming = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(args.grad_x) % 64 == 0 &&
                         (planar ? shape.inner : channels) % Vector<C>::lanes == 0;
  for (int64_t c = 0; c < channels; c++)
    k.scale[c] = channel_scale<C>(args.weight, static_cast<const C*>(args.var)[c], args.eps, c);

  const int64_t read_per_channel = bytes / channels * (args.residual ? 3 : 2);
  if (planar && channels >= 2 * num_threads() && read_per_channel <= kResidentBytes) {
    parallel_for(0, channels, kGrain / shape.count() + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c++) {
        double sum_g = 0, sum_gd = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
          C rounded[2];  // as the other path stores them, so that both give the same bits
          double g = 0, gd = 0;
          planar_sums<T, activation>(args, shape, k.scale, c, chunk_begin(shape, chunk), chunk_end(shape, chunk), &g,
                                     &gd);
          rounded[0] = static_cast<C>(g), rounded[1] = static_cast<C>(gd);
          sum_g += rounded[0], sum_gd += rounded[1];
        }
        finish_channel<C>(args, k, c, sum_g, sum_gd);
        planar_apply<T, activation>(args, shape, k, c, 0, shape.count(), streaming);
      }
      if (streaming) stream_fence();
    });
    return;
  }

  const int64_t tasks = chunk_tasks(shape), grain = chunk_grain(shape);
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t chunk = planar ? task % chunks : task, channel = planar ? task / chunks : 0;
      const int64_t from = chunk_begin(shape, chunk), to = chunk_end(shape, chunk);
      C* sums = partial + 2 * chunk * channels + channel;
      if (planar) {
        double g = 0, gd = 0;
        planar_sums<T, activation>(args, shape, k.scale, channel, from, to, &g, &gd);
        sums[0] = static_cast<C>(g), sums[channels] = static_cast<C>(gd);
      } else {
        row_sums<T, activation>(args, k.scale, from, to, sums, sums + channels);
      }
    }
  });
  parallel_for(0, channels, kGrain / (chunks + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kMergeBlock) {
      const int64_t left = end - first, width = left < kMergeBlock ? left : kMergeBlock;
      double g[kMergeBlock] = {}, gd[kMergeBlock] = {};
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const C* sums = partial + 2 * chunk * channels + first;
        for (int64_t i = 0; i < width; i++) g[i] += sums[i], gd[i] += sums[channels + i];
      }
      for (int64_t i = 0; i < width; i++) finish_channel<C>(args, k, first + i, g[i], gd[i]);
    }
  });
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = end - 1; task >= begin; task--) {
      const int64_t chunk = planar ? task % chunks : task;
      const int64_t from = chunk_begin(shape, chunk), to = chunk_end(shape, chunk);
      if (planar)
        planar_apply<T, activation>(args, shape, k, task / chunks, from, to, streaming);
      else
        row_apply<T, activation>(args, k, from, to, streaming);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void batch_norm_act_backward(const BatchNormActBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype,
                         GENCORE_DISPATCH_ACTIVATION(args.activation, backward<scalar_t, kActivation>(args)));
}

}  // namespace gencore::GENCORE_ISA
