// The gradient of batch norm with activation. With u = (x - mean) scale + bias (+ residual), g = grad_y act'(u), and
// sums over the count elements of a channel,
//   grad_bias = sum g,   grad_weight = invstd sum g (x - mean),   grad_residual = g,
//   grad_x = scale g - invstd (mean(w g) + (x - mean) invstd^2 mean(w g (x - mean)))   in training,
//   grad_x = scale g                                                                in evaluation.
// Where the weight w is that of a sample, so are the gradients of weight and bias, and the two means are taken over
// the sums of all samples.
// The activation's gradient is worked out anew from x in both passes, so that nothing but x is kept from the forward.
#include "cpu/batch_norm_loops.h"

namespace gencore::GENCORE_ISA {

namespace {

// Constants as the loops read them, one value a column; scale and bias for each sample. What is subtracted is scaled
// with g, which rounds less, where all samples have one scale.
template <class C>
struct Columns {
  C *mean, *mean_g, *slope_x, *scale, *bias;
  Columns of(int64_t sample, int64_t width) const {
    return {mean, mean_g, slope_x, scale + sample * width, bias + sample * width};
  }
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

// Sums of g and of g (x - mean) over a piece of one channel. Lanes past its end have grad_y = 0, hence g = 0.
template <class T, Activation activation, class C = compute_t<T>>
void planar_sums(const BatchNormActBackwardArgs& args, const Columns<C>& columns, const Piece& piece, C* sum_g,
                 C* sum_gd) {
  using V = vector_t<C>;
  const Gradient<T, activation> gradient(args);
  const V mean = broadcast<V>(columns.mean[piece.channel]), scale = broadcast<V>(columns.scale[piece.channel]);
  const V bias = broadcast<V>(columns.bias[piece.channel]);
  V g[4] = {}, gd[4] = {};
  for_each_vector<Vector<C>::lanes>(piece.count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
    V d;
    const V v = gradient(piece.offset + i, n, mean, scale, bias, &d);
    g[slot] += v;
    gd[slot] += v * d;
  });
  *sum_g = static_cast<C>(horizontal_sum(pairwise_sum(g)));
  *sum_gd = static_cast<C>(horizontal_sum(pairwise_sum(gd)));
}

// The same for every column of `rows`.
template <class T, Activation activation, class C = compute_t<T>>
void row_sums(const BatchNormActBackwardArgs& args, int64_t width, const Columns<C>& columns, const Rows& rows,
              C* sum_g, C* sum_gd) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Gradient<T, activation> gradient(args);
  for (int64_t c = rows.first; c < rows.first + rows.columns; c++) sum_g[c] = sum_gd[c] = C{0};
  const auto add = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column, int64_t n)
                       GENCORE_LAMBDA {
                         V mean[vectors], scale[vectors], bias[vectors], sum[vectors] = {}, products[vectors] = {};
                         load_tile(columns.mean + column, n, mean);
                         load_tile(columns.scale + column, n, scale);
                         load_tile(columns.bias + column, n, bias);
                         for (int64_t row = first; row < last; row++)
                           for (int j = 0; j < vectors; j++) {
                             V g[streams], gd[streams];
                             for (int s = 0; s < streams; s++) {
                               V d;
                               const int64_t i = (row + s * apart) * width + column + j * lanes;
                               g[s] = gradient(i, n, mean[j], scale[j], bias[j], &d);
                               gd[s] = g[s] * d;
                             }
                             sum[j] += pairwise_sum(g);
                             products[j] += pairwise_sum(gd);
                           }
                         add_tile(sum_g + column, n, sum);
                         add_tile(sum_gd + column, n, products);
                       };
  for_each_tile<lanes, 2>(rows, add);
}

template <bool one_scale, class V>
GENCORE_INLINE V gradient_of_x(V g, V deviation, V scale, V mean_g, V slope_x) {
  if constexpr (one_scale) return scale * (g - mean_g - deviation * slope_x);
  return scale * g - mean_g - deviation * slope_x;
}

// Sums over a channel of w g and of w g (x - mean), where w = 1 if all samples have one scale.
struct Totals {
  double g = 0, gd = 0;
};

// Takes one sample's sums of g and of g (x - mean): writes its gradients, and adds its part to the totals.
template <class C>
void finish_sample(const BatchNormActBackwardArgs& args, int64_t sample, int64_t channel, double sum_g, double sum_gd,
                   Totals& totals) {
  const int64_t index = sample * args.shape.channels + channel;
  static_cast<C*>(args.grad_bias)[index] = static_cast<C>(sum_g);
  static_cast<C*>(args.grad_weight)[index] = static_cast<C>(sum_gd * channel_invstd<C>(args.var, args.eps, channel));
  const double weight = args.weight && args.samples > 1 ? static_cast<const C*>(args.weight)[index] : 1.0;
  totals.g += weight * sum_g;
  totals.gd += weight * sum_gd;
}

template <class C>
void finish_channel(const BatchNormActBackwardArgs& args, const Columns<C>& columns, int64_t channel, int64_t fold,
                    const Totals& totals) {
  const double invstd = channel_invstd<C>(args.var, args.eps, channel);
  const double scale = args.samples > 1 ? invstd : 1.0;
  const double factor = args.training ? scale / static_cast<double>(args.shape.count()) : 0.0;
  fill_columns(columns.mean_g, channel, fold, static_cast<C>(totals.g * factor));
  fill_columns(columns.slope_x, channel, fold, static_cast<C>(totals.gd * invstd * invstd * factor));
}

template <class T, Activation activation, bool one_scale, class C = compute_t<T>>
void planar_apply(const BatchNormActBackwardArgs& args, const Columns<C>& columns, const Piece& piece, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Gradient<T, activation> gradient(args);
  T* grad_x = static_cast<T*>(args.grad_x);
  T* grad_residual = static_cast<T*>(args.grad_residual);
  const auto at = [&](const C* column) { return broadcast<V>(column[piece.channel]); };
  const V mean = at(columns.mean), scale = at(columns.scale), bias = at(columns.bias);
  const V mean_g = at(columns.mean_g), slope_x = at(columns.slope_x);
  const auto value = [&](int64_t i, int64_t n) GENCORE_LAMBDA {
    V d;
    const V g = gradient(i, n, mean, scale, bias, &d);
    if (grad_residual) store(grad_residual + i, g, n);
    return gradient_of_x<one_scale>(g, d, scale, mean_g, slope_x);
  };
  const int64_t begin = piece.offset;
  if (streaming)
    for (int64_t i = begin; i < begin + piece.count; i += lanes) stream(grad_x + i, value(i, lanes));
  else
    for_each_vector<lanes>(piece.count, [&](int64_t i, int64_t n, int)
                                            GENCORE_LAMBDA { store(grad_x + begin + i, value(begin + i, n), n); });
}

template <class T, Activation activation, bool one_scale, class C = compute_t<T>>
void row_apply(const BatchNormActBackwardArgs& args, int64_t width, const Columns<C>& columns, const Rows& rows,
               bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Gradient<T, activation> gradient(args);
  T* grad_x = static_cast<T*>(args.grad_x);
  T* grad_residual = static_cast<T*>(args.grad_residual);
  const auto apply = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                   int64_t n) GENCORE_LAMBDA {
    V mean[vectors], scale[vectors], bias[vectors], mean_g[vectors], slope_x[vectors];
    load_tile(columns.mean + column, n, mean);
    load_tile(columns.scale + column, n, scale);
    load_tile(columns.bias + column, n, bias);
    load_tile(columns.mean_g + column, n, mean_g);
    load_tile(columns.slope_x + column, n, slope_x);
    for (int64_t row = first; row < last; row++)
      for (int j = 0; j < vectors; j++)
        for (int s = 0; s < streams; s++) {
          const int64_t i = (row + s * apart) * width + column + j * lanes;
          V d;
          const V g = gradient(i, n, mean[j], scale[j], bias[j], &d);
          if (grad_residual) store(grad_residual + i, g, n);
          const V value = gradient_of_x<one_scale>(g, d, scale[j], mean_g[j], slope_x[j]);
          if (streaming)
            stream(grad_x + i, value);
          else
            store(grad_x + i, value, n);
        }
  };
  for_each_tile<lanes, 2>(rows, apply);
}

// The sums of all chunks of `block` channels from `first` on become the constants of these, and the gradients of weight
// and bias: partial is [chunk][g, g (x - mean)][column].
template <class C>
void merge_channels(const BatchNormActBackwardArgs& args, const BatchNormWalk& walk, const C* partial,
                    const Columns<C>& columns, int64_t first, int64_t block) {
  const int64_t width = walk.shape.channels, fold = walk.fold;
  Totals totals[kMergeBlock];
  for (int64_t n = 0; n < args.samples; n++) {
    double g[kMergeBlock] = {}, gd[kMergeBlock] = {};
    for (int64_t chunk = n * walk.sample_chunks; chunk < (n + 1) * walk.sample_chunks; chunk++) {
      const C* sums = partial + 2 * chunk * width + first * fold;
      add_columns(sums, block, fold, g);
      add_columns(sums + width, block, fold, gd);
    }
    for (int64_t i = 0; i < block; i++) finish_sample<C>(args, n, first + i, g[i], gd[i], totals[i]);
  }
  for (int64_t i = 0; i < block; i++) finish_channel(args, columns, first + i, fold, totals[i]);
}

template <class T, Activation activation, bool one_scale, class C = compute_t<T>>
void backward(const BatchNormActBackwardArgs& args) {
  const BatchNormWalk walk = batch_norm_walk(args.shape, args.samples);
  const BatchNormShape& shape = walk.shape;
  const int64_t chunks = walk.chunks, width = shape.channels;
  C* partial = static_cast<C*>(args.workspace);
  C* after = partial + 2 * chunks * width;
  const Columns<C> columns{after, after + width, after + 2 * width, after + 3 * width,
                           after + (3 + args.samples) * width};
  const int64_t bytes = shape.numel() * static_cast<int64_t>(sizeof(T));
  const bool streaming = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(args.grad_x) % 64 == 0 &&
                         (walk.planar ? shape.inner : width) % Vector<C>::lanes == 0;
  set_all_columns<C>(args, columns, walk);

  const auto piece_sums = [&](const Piece& piece) {
    C* sums = partial + 2 * piece.chunk * width + piece.channel;
    planar_sums<T, activation>(args, columns.of(piece.sample, width), piece, sums, sums + width);
  };
  const auto apply_piece = [&](const Piece& piece) {
    planar_apply<T, activation, one_scale>(args, columns.of(piece.sample, width), piece, streaming);
  };

  const int64_t read_per_channel = bytes / width * (args.residual ? 3 : 2);
  if (walk.planar && shape.outer == 1 && width >= 2 * num_threads() && read_per_channel <= kResidentBytes) {
    parallel_for(0, width, kGrain / shape.inner + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c++) {
        for (int64_t i = c * chunks; i < (c + 1) * chunks; i++) piece_sums(piece_of(walk, i));
        merge_channels(args, walk, partial, columns, c, 1);
        for (int64_t i = c * chunks; i < (c + 1) * chunks; i++) apply_piece(piece_of(walk, i));
      }
      if (streaming) stream_fence();
    });
    return;
  }

  for_each_chunk(walk, false, [&](int64_t i) {
    if (walk.planar) return piece_sums(piece_of(walk, i));
    const Rows rows = rows_of(walk, i);
    C* sums = partial + 2 * rows.chunk * width;
    row_sums<T, activation>(args, width, columns.of(rows.sample, width), rows, sums, sums + width);
  });
  for_each_channel_block(walk.channels, chunks * walk.fold, [&](int64_t first, int64_t block) {
    merge_channels(args, walk, partial, columns, first, block);
  });
  for_each_chunk(walk, true, [&](int64_t i) {
    if (walk.planar) return apply_piece(piece_of(walk, i));
    const Rows rows = rows_of(walk, i);
    row_apply<T, activation, one_scale>(args, width, columns.of(rows.sample, width), rows, streaming);
  });
}

}  // namespace

void batch_norm_act_backward(const BatchNormActBackwardArgs& args) {
  const int64_t numel = args.shape.numel(), channels = args.shape.channels, affine = args.samples * channels;
  const int64_t size = size_of(args.dtype), compute_size = compute_size_of(args.dtype);
  const int64_t workspace = batch_norm_walk(args.shape, args.samples).workspace;
  for_each_instance(
      args,
      [&](BatchNormActBackwardArgs& one, int64_t i) {
        one.grad_y = at_instance(one.grad_y, i, numel, size);
        one.x = at_instance(one.x, i, numel, size);
        one.residual = at_instance(one.residual, i, numel, size);
        one.grad_x = at_instance(one.grad_x, i, numel, size);
        one.grad_residual = at_instance(one.grad_residual, i, numel, size);
        one.weight = at_instance(one.weight, i, affine, compute_size);
        one.bias = at_instance(one.bias, i, affine, compute_size);
        one.grad_weight = at_instance(one.grad_weight, i, affine, compute_size);
        one.grad_bias = at_instance(one.grad_bias, i, affine, compute_size);
        one.mean = at_instance(one.mean, i, channels, compute_size);
        one.var = at_instance(one.var, i, channels, compute_size);
        one.workspace = at_instance(one.workspace, i, workspace, compute_size);
      },
      [](const BatchNormActBackwardArgs& one) {
        if (one.samples == 1)
          GENCORE_DISPATCH_DTYPE(
              one.dtype, GENCORE_DISPATCH_ACTIVATION(one.activation, backward<scalar_t, kActivation, true>(one)))
        else
          GENCORE_DISPATCH_DTYPE(
              one.dtype, GENCORE_DISPATCH_ACTIVATION(one.activation, backward<scalar_t, kActivation, false>(one)))
      });
}

}  // namespace gencore::GENCORE_ISA
