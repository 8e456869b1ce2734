#include "cpu/batch_norm_act.h"

#include "cpu/batch_norm_loops.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

// --- statistics ------------------------------------------------------------------------------------------------------

// Mean and sum of squared deviations from it, over [begin, end) of one channel.
template <class T, class C = compute_t<T>>
void planar_chunk(const T* x, const BatchNormShape& shape, int64_t channel, int64_t begin, int64_t end, C* mean,
                  C* m2) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  V sum[4] = {};
  for_each_run(shape, channel, begin, end, [&](int64_t offset, int64_t count) GENCORE_LAMBDA {
    for_each_vector<lanes>(
        count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA { sum[slot] += load(x + offset + i, n); });
  });
  *mean = static_cast<C>(horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / static_cast<double>(end - begin));
  const V center = broadcast<V>(*mean);
  V square[4] = {};
  for_each_run(shape, channel, begin, end, [&](int64_t offset, int64_t count) GENCORE_LAMBDA {
    for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
      V d = load(x + offset + i, n) - center;
      if (n < lanes) d = first_lanes(d, n);
      square[slot] += d * d;
    });
  });
  *m2 = static_cast<C>(horizontal_sum((square[0] + square[1]) + (square[2] + square[3])));
}

// The same for every channel, over `rows` rows.
template <class T, class C = compute_t<T>>
void row_chunk(const T* x, int64_t channels, int64_t rows, C* mean, C* m2) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const C inverse = static_cast<C>(1.0 / static_cast<double>(rows));
  const auto add = [&]<int vectors>(int64_t column, int64_t n, int64_t first, int64_t last) GENCORE_LAMBDA {
    V sum[vectors] = {};
    if (first > 0) load_tile(mean + column, n, sum);
    for (int64_t r = first; r < last; r++)
      for (int j = 0; j < vectors; j++) sum[j] += load(x + r * channels + column + j * lanes, n);
    if (last == rows)
      for (int j = 0; j < vectors; j++) sum[j] *= inverse;
    store_tile(mean + column, n, sum);
  };
  for_each_tile_of_rows<lanes>(channels, 0, rows, add);
  // The deviations' own sum takes back what rounding did to the mean.
  C* rest = static_cast<C*>(scratch(Scratch::worker, channels * sizeof(C)));
  const auto deviate = [&]<int vectors>(int64_t column, int64_t n, int64_t first, int64_t last) GENCORE_LAMBDA {
    V center[vectors], square[vectors] = {}, sum[vectors] = {};
    load_tile(mean + column, n, center);
    if (first > 0) {
      load_tile(m2 + column, n, square);
      load_tile(rest + column, n, sum);
    }
    for (int64_t r = first; r < last; r++)
      for (int j = 0; j < vectors; j++) {
        const V d = load(x + r * channels + column + j * lanes, n) - center[j];
        sum[j] += d;
        square[j] += d * d;
      }
    if (last == rows)
      for (int j = 0; j < vectors; j++) {
        center[j] += sum[j] * inverse;
        square[j] -= sum[j] * sum[j] * inverse;
      }
    store_tile(mean + column, n, center);
    store_tile(m2 + column, n, square);
    store_tile(rest + column, n, sum);
  };
  for_each_tile_of_rows<lanes>(channels, 0, rows, deviate);
}

// Constants as the loops read them: one value a column; scale and bias for each sample.
template <class C>
struct Columns {
  C *mean, *scale, *bias;
  Columns of(int64_t sample, int64_t width) const { return {mean, scale + sample * width, bias + sample * width}; }
};

template <class C>
void finish_channel(const BatchNormActArgs& args, const Columns<C>& columns, int64_t channel, int64_t fold, double mean,
                    double m2) {
  static_cast<C*>(args.mean)[channel] = static_cast<C>(mean);
  static_cast<C*>(args.var)[channel] = static_cast<C>(m2 / static_cast<double>(args.shape.count()));
  set_columns<C>(args, columns, channel, fold);
}

// Merges the partial moments of all channels: partial is [chunk][mean, m2][column].
template <class C>
void merge_chunks(const BatchNormActArgs& args, const BatchNormWalk& walk, const C* partial,
                  const Columns<C>& columns) {
  const int64_t chunks = walk.chunks(), fold = walk.fold;
  for_each_channel_block(walk.channels(), chunks * fold, [&](int64_t first, int64_t width) {
    double mean[kMergeBlock] = {}, m2[kMergeBlock] = {}, count = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const double rows = static_cast<double>(chunk_end(walk, chunk) - chunk_begin(walk, chunk));
      const C* means = partial + 2 * chunk * walk.shape.channels + first * fold;
      const C* m2s = means + walk.shape.channels;
      double total = count;
      for (int64_t i = 0; i < width; i++) {
        double chunk_mean = 0, chunk_m2 = 0;
        for (int64_t j = i * fold; j < (i + 1) * fold; j++) chunk_mean += means[j];
        chunk_mean /= static_cast<double>(fold);
        for (int64_t j = i * fold; j < (i + 1) * fold; j++) {
          const double d = means[j] - chunk_mean;
          chunk_m2 += m2s[j] + rows * d * d;
        }
        total = count;
        merge(total, mean[i], m2[i], rows * static_cast<double>(fold), chunk_mean, chunk_m2);
      }
      count = total;
    }
    for (int64_t i = 0; i < width; i++) finish_channel(args, columns, first + i, fold, mean[i], m2[i]);
  });
}

// --- normalisation ---------------------------------------------------------------------------------------------------

template <class T, Activation activation, class C = compute_t<T>>
void planar_apply(const BatchNormActArgs& args, const BatchNormShape& shape, const Columns<C>& columns, int64_t channel,
                  int64_t begin, int64_t end, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const V mean = broadcast<V>(columns.mean[channel]), scale = broadcast<V>(columns.scale[channel]);
  const V bias = broadcast<V>(columns.bias[channel]);
  const C slope = static_cast<C>(args.negative_slope);
  for_each_run(shape, channel, begin, end, [&](int64_t offset, int64_t count) GENCORE_LAMBDA {
    auto value = [&](int64_t i, int64_t n) GENCORE_LAMBDA {
      V u = (load(x + i, n) - mean) * scale + bias;
      if (residual) u += load(residual + i, n);
      return activate<activation>(u, slope);
    };
    if (streaming)
      for (int64_t i = offset; i < offset + count; i += lanes) stream(y + i, value(i, lanes));
    else
      for_each_vector<lanes>(
          count, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA { store(y + offset + i, value(offset + i, n), n); });
  });
}

template <class T, Activation activation, class C = compute_t<T>>
void row_apply(const BatchNormActArgs& args, int64_t width, const Columns<C>& columns, int64_t begin, int64_t end,
               bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const C slope = static_cast<C>(args.negative_slope);
  const auto apply = [&]<int vectors>(int64_t column, int64_t n, int64_t first, int64_t last) GENCORE_LAMBDA {
    V mean[vectors], scale[vectors], bias[vectors];
    load_tile(columns.mean + column, n, mean);
    load_tile(columns.scale + column, n, scale);
    load_tile(columns.bias + column, n, bias);
    for (int64_t r = first; r < last; r++)
      for (int j = 0; j < vectors; j++) {
        const int64_t i = r * width + column + j * lanes;
        V u = (load(x + i, n) - mean[j]) * scale[j] + bias[j];
        if (residual) u += load(residual + i, n);
        const V value = activate<activation>(u, slope);
        if (streaming)
          stream(y + i, value);
        else
          store(y + i, value, n);
      }
  };
  for_each_tile_of_rows<lanes>(width, begin, end, apply);
}

// --- the whole -------------------------------------------------------------------------------------------------------

template <class T, Activation activation, class C = compute_t<T>>
void forward(const BatchNormActArgs& args) {
  const BatchNormWalk walk = batch_norm_walk(args.shape, args.samples);
  const BatchNormShape& shape = walk.shape;
  const int64_t chunks = walk.chunks(), width = shape.channels;
  const T* x = static_cast<const T*>(args.x);
  C* partial = static_cast<C*>(args.workspace);
  C* after = partial + 2 * chunks * width;
  const Columns<C> columns{after, after + width, after + (1 + args.samples) * width};
  const bool streaming = shape.numel() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                         reinterpret_cast<uintptr_t>(args.y) % 64 == 0 &&
                         (walk.planar() ? shape.inner : width) % Vector<C>::lanes == 0;

  if (args.training && walk.planar() && width >= 2 * num_threads() &&
      shape.count() * static_cast<int64_t>(sizeof(T)) <= kResidentBytes) {
    parallel_for(0, width, kGrain / shape.count() + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c++) {
        double count = 0, mean = 0, m2 = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
          C chunk_mean, chunk_m2;
          const int64_t from = chunk_begin(walk, chunk), to = chunk_end(walk, chunk);
          planar_chunk(x, shape, c, from, to, &chunk_mean, &chunk_m2);
          merge(count, mean, m2, static_cast<double>(to - from), chunk_mean, chunk_m2);
        }
        finish_channel(args, columns, c, 1, mean, m2);
        for (int64_t n = 0; n < args.samples; n++)
          planar_apply<T, activation>(args, shape, columns.of(n, width), c, n * walk.sample_size(),
                                      (n + 1) * walk.sample_size(), streaming);
      }
      if (streaming) stream_fence();
    });
    return;
  }

  if (args.training) {
    parallel_for(0, chunk_tasks(walk), chunk_grain(walk), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        const int64_t chunk = walk.planar() ? task % chunks : task, channel = walk.planar() ? task / chunks : 0;
        const int64_t from = chunk_begin(walk, chunk), to = chunk_end(walk, chunk);
        C* mean = partial + 2 * chunk * width + channel;
        if (walk.planar())
          planar_chunk(x, shape, channel, from, to, mean, mean + width);
        else
          row_chunk(x + from * width, width, to - from, mean, mean + width);
      }
    });
    merge_chunks(args, walk, partial, columns);
  } else {
    set_all_columns<C>(args, columns, walk);
  }
  if (walk.planar()) {
    // Plane by plane, as they lie in memory.
    parallel_for(0, shape.outer * width, kGrain / shape.inner + 1, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; plane++) {
        const int64_t from = plane / width * shape.inner, n = from / walk.sample_size();
        planar_apply<T, activation>(args, shape, columns.of(n, width), plane % width, from, from + shape.inner,
                                    streaming);
      }
      if (streaming) stream_fence();
    });
    return;
  }
  parallel_for(0, chunk_tasks(walk), chunk_grain(walk), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < end - begin; i++) {
      // In training backwards within each thread's range: what the statistics read last the caches still hold.
      const int64_t chunk = args.training ? end - 1 - i : begin + i;
      row_apply<T, activation>(args, width, columns.of(chunk_sample(walk, chunk), width), chunk_begin(walk, chunk),
                               chunk_end(walk, chunk), streaming);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void batch_norm_act(const BatchNormActArgs& args) {
  const int64_t numel = args.shape.numel(), affine = args.samples * args.shape.channels;
  const int64_t size = size_of(args.dtype), compute_size = compute_size_of(args.dtype);
  const int64_t workspace = batch_norm_walk(args.shape, args.samples).workspace();
  for_each_instance(
      args,
      [&](BatchNormActArgs& one, int64_t i) {
        one.x = at_instance(one.x, i, numel, size);
        one.residual = at_instance(one.residual, i, numel, size);
        one.y = at_instance(one.y, i, numel, size);
        one.weight = at_instance(one.weight, i, affine, compute_size);
        one.bias = at_instance(one.bias, i, affine, compute_size);
        one.mean = at_instance(one.mean, i, args.shape.channels, compute_size);
        one.var = at_instance(one.var, i, args.shape.channels, compute_size);
        one.workspace = at_instance(one.workspace, i, workspace, compute_size);
      },
      [](const BatchNormActArgs& one) {
        GENCORE_DISPATCH_DTYPE(one.dtype,
                               GENCORE_DISPATCH_ACTIVATION(one.activation, forward<scalar_t, kActivation>(one)));
      });
}

}  // namespace gencore::GENCORE_ISA
