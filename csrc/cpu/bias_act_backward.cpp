#include "cpu/bias_act_loops.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

// Sums of one block of pixels: [sample][block][kind][channel], kind 0 of g, kind 1 of g x.
template <class C>
struct Partial {
  C* sums;
  int64_t channels, blocks;
  C* at(int64_t sample, int64_t block, int kind) const {
    return sums + ((sample * blocks + block) * 2 + kind) * channels;
  }
};

template <class T, Activation activation, class C = compute_t<T>>
void planar_block(const BiasActBackwardArgs& args, int64_t n, int64_t first_channel, int64_t last_channel,
                  int64_t begin, int64_t end, C* sum_g, C* sum_gx, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const BiasActArgs& f = args.forward;
  const BiasActConstants<C> constants(f);
  const BiasActRow<C> row(f, n);
  const bool clamped = f.clamp >= 0;
  C* grad_noise = args.grad_noise ? static_cast<C*>(args.grad_noise) + n * f.shape.pixels : nullptr;
  if (grad_noise) std::memset(grad_noise + begin, 0, (end - begin) * sizeof(C));
  for (int64_t c = first_channel; c < last_channel; c++) {
    const int64_t first = (n * f.shape.channels + c) * f.shape.pixels;
    const T* x = static_cast<const T*>(f.x) + first;
    const T* grad_y = static_cast<const T*>(args.grad_y) + first;
    T* grad_x = static_cast<T*>(args.grad_x) + first;
    const V scale = broadcast<V>(row.scale ? row.scale[c] : C{1}), bias = broadcast<V>(row.bias ? row.bias[c] : C{0});
    V g_sum[4] = {}, gx_sum[4] = {};
    for_each_vector<lanes>(end - begin, [&](int64_t i, int64_t count, int slot) GENCORE_LAMBDA {
      const int64_t p = begin + i;
      const V value = load(x + p, count);
      V u = value * scale;
      if (row.noise) u += load(row.noise + p, count);
      // Lanes past the end load a gradient of zero.
      const V g = constants.template gradient<activation>(load(grad_y + p, count), u + bias, clamped);
      put(grad_x + p, g * scale, count, streaming);
      if (grad_noise) store(grad_noise + p, load(grad_noise + p, count) + g, count);
      g_sum[slot] += g;
      gx_sum[slot] += g * value;
    });
    sum_g[c] = static_cast<C>(horizontal_sum((g_sum[0] + g_sum[1]) + (g_sum[2] + g_sum[3])));
    sum_gx[c] = static_cast<C>(horizontal_sum((gx_sum[0] + gx_sum[1]) + (gx_sum[2] + gx_sum[3])));
  }
}

// scaled: there are a scale and its gradient; otherwise more channels are taken at once.
template <class T, Activation activation, bool scaled, class C = compute_t<T>>
void channels_last_block(const BiasActBackwardArgs& args, int64_t n, int64_t begin, int64_t end, C* sum_g, C* sum_gx,
                         bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const BiasActArgs& f = args.forward;
  const BiasActConstants<C> constants(f);
  const BiasActRow<C> row(f, n);
  const bool clamped = f.clamp >= 0;
  const int64_t channels = f.shape.channels, offset = n * f.shape.pixels * channels;
  const T* x = static_cast<const T*>(f.x) + offset;
  const T* grad_y = static_cast<const T*>(args.grad_y) + offset;
  T* grad_x = static_cast<T*>(args.grad_x) + offset;
  const bool noise_wanted = args.grad_noise != nullptr;
  V noise_sum[64] = {};  // of BiasActShape::block_size() pixels
  for (int64_t c = 0; c < channels; c++) sum_g[c] = sum_gx[c] = C{0};
  const auto add = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                 int64_t count) GENCORE_LAMBDA {
    const BiasActColumns<C, vectors> columns(row, column, count);
    V g_sum[vectors] = {}, gx_sum[vectors] = {};
    for (int64_t pixel = first; pixel < last; pixel++)
      for (int s = 0; s < streams; s++) {
        const int64_t p = pixel + s * apart;
        const V noise = broadcast<V>(row.noise ? row.noise[p] : C{0});
        V over_channels{};
        for (int j = 0; j < vectors; j++) {
          const int64_t i = p * channels + column + j * lanes;
          const V value = load(x + i, count);
          V u = value;
          if constexpr (scaled) u *= columns.scale[j];
          const V g =
              constants.template gradient<activation>(load(grad_y + i, count), u + noise + columns.bias[j], clamped);
          put(grad_x + i, scaled ? g * columns.scale[j] : g, count, streaming);
          over_channels += g;
          g_sum[j] += g;
          if constexpr (scaled) gx_sum[j] += g * value;
        }
        if (noise_wanted) noise_sum[p - begin] += over_channels;
      }
    add_tile(sum_g + column, count, g_sum);
    if constexpr (scaled) add_tile(sum_gx + column, count, gx_sum);
  };
  for_each_tile<lanes, 2, scaled ? 4 : 8>({begin, end, 0, channels}, add);
  if (noise_wanted)
    for (int64_t p = begin; p < end; p++)
      static_cast<C*>(args.grad_noise)[n * f.shape.pixels + p] = static_cast<C>(horizontal_sum(noise_sum[p - begin]));
}

// total: [2][channels].
template <class C>
void merge(const BiasActBackwardArgs& args, const Partial<C>& partial, double* total) {
  const BiasActShape& s = args.forward.shape;
  double *total_g = total, *total_gx = total + s.channels;
  std::memset(total_g, 0, s.channels * sizeof(double));
  for (int64_t n = 0; n < s.batch; n++) {
    std::memset(total_gx, 0, s.channels * sizeof(double));
    for (int64_t block = 0; block < partial.blocks; block++) {
      const C *g = partial.at(n, block, 0), *gx = partial.at(n, block, 1);
      for (int64_t c = 0; c < s.channels; c++) total_g[c] += g[c];
      for (int64_t c = 0; c < s.channels; c++) total_gx[c] += gx[c];
    }
    if (args.grad_scale)
      for (int64_t c = 0; c < s.channels; c++)
        static_cast<C*>(args.grad_scale)[n * s.channels + c] = static_cast<C>(total_gx[c]);
  }
  if (args.grad_bias)
    for (int64_t c = 0; c < s.channels; c++) static_cast<C*>(args.grad_bias)[c] = static_cast<C>(total_g[c]);
}

template <class T, Activation activation, class C = compute_t<T>>
void backward(const BiasActBackwardArgs& args) {
  const BiasActShape& s = args.forward.shape;
  const int64_t blocks = s.blocks(), size = s.block_size();
  const int64_t work = (s.pixels < size ? s.pixels : size) * s.channels;
  Partial<C> partial{nullptr, s.channels, blocks};
  double* total = nullptr;
  Arena arena;
  for (int round = 0; round < 2; round++) {
    partial.sums = arena.take<C>(s.batch * blocks * 2 * s.channels);
    total = arena.take<double>(2 * s.channels);
    if (round == 0) arena = {static_cast<char*>(scratch(Scratch::shared, arena.used)), 0};
  }
  const bool streaming = bias_act_streams<T>(s, args.grad_x);
  // Planes one after the other, as they lie in memory, unless a sum over channels is asked for.
  const int64_t cuts = s.channels_last || args.grad_noise ? 1 : s.channels;
  parallel_for(0, s.batch * blocks * cuts, kBiasActGrain * cuts / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t n = task / (cuts * blocks), cut = task / blocks % cuts, block = task % blocks;
      const int64_t from = block * size, to = from + size < s.pixels ? from + size : s.pixels;
      C *sum_g = partial.at(n, block, 0), *sum_gx = partial.at(n, block, 1);
      if (!s.channels_last)
        planar_block<T, activation>(args, n, s.channels * cut / cuts, s.channels * (cut + 1) / cuts, from, to, sum_g,
                                    sum_gx, streaming);
      else if (args.forward.scale)
        channels_last_block<T, activation, true>(args, n, from, to, sum_g, sum_gx, streaming);
      else
        channels_last_block<T, activation, false>(args, n, from, to, sum_g, sum_gx, streaming);
    }
    if (streaming) stream_fence();
  });
  merge(args, partial, total);
}

}  // namespace

void bias_act_backward(const BiasActBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.forward.dtype, GENCORE_DISPATCH_ANY_ACTIVATION(args.forward.activation,
                                                                             backward<scalar_t, kActivation>(args)))
}

}  // namespace gencore::GENCORE_ISA
