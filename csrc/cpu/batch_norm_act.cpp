#include "cpu/batch_norm_act.h"

#include "cpu/batch_norm_loops.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

// --- statistics ------------------------------------------------------------------------------------------------------

// A chunk's mean and sum of squared deviations from it come from the sums of x - s and of its square, in one pass. s is
// the mean of an eighth of the chunk: (mean - s)^2 is then at most eight times the variance, and far less as a rule, so
// that taking it off costs few digits.

template <class T, class C = compute_t<T>>
void planar_chunk(const T* x, int64_t count, C* mean, C* m2) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const int64_t eighth = (count + 8 * lanes - 1) / (8 * lanes) * lanes, some = eighth < count ? eighth : count;
  V first[4] = {};
  for_each_vector<lanes>(some, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA { first[slot] += load(x + i, n); });
  const C shift = static_cast<C>(horizontal_sum(pairwise_sum(first)) / static_cast<double>(some));
  const V center = broadcast<V>(shift);
  V sum[4] = {}, square[4] = {};
  for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
    V d = load(x + i, n) - center;
    if (n < lanes) d = first_lanes(d, n);
    sum[slot] += d;
    square[slot] += d * d;
  });
  const double total = horizontal_sum(pairwise_sum(sum)), apart = total / static_cast<double>(count);
  *mean = static_cast<C>(static_cast<double>(shift) + apart);
  *m2 = static_cast<C>(horizontal_sum(pairwise_sum(square)) - total * apart);
}

// The same for every column of `rows`.
template <class T, class C = compute_t<T>>
void row_chunk(const T* x, int64_t width, const Rows& rows, C* mean, C* m2) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes, kStreams = 4;
  constexpr int64_t kSome = 16;
  C* shift = static_cast<C*>(scratch(Scratch::worker, rows.columns * sizeof(C))) - rows.first;
  const int64_t end = rows.first + rows.columns, count = rows.end - rows.begin;
  for (int64_t c = rows.first; c < end; c++) shift[c] = mean[c] = m2[c] = C{0};
  const auto add_first = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                       int64_t n) GENCORE_LAMBDA {
    V sum[vectors] = {};
    for (int64_t row = first; row < last; row++)
      for (int j = 0; j < vectors; j++) {
        V value[streams];
        for (int s = 0; s < streams; s++) value[s] = load(x + (row + s * apart) * width + column + j * lanes, n);
        sum[j] += pairwise_sum(value);
      }
    add_tile(shift + column, n, sum);
  };
  Rows head = rows;
  if (count > kSome) head.end = rows.begin + kSome;
  for_each_tile<lanes, kStreams>(head, add_first);
  const C share = static_cast<C>(1.0 / static_cast<double>(head.end - head.begin));
  for (int64_t c = rows.first; c < end; c++) shift[c] *= share;
  const auto add = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column, int64_t n)
                       GENCORE_LAMBDA {
                         V center[vectors], sum[vectors] = {}, squares[vectors] = {};
                         load_tile(shift + column, n, center);
                         for (int64_t row = first; row < last; row++)
                           for (int j = 0; j < vectors; j++) {
                             V d[streams], square[streams];
                             for (int s = 0; s < streams; s++) {
                               d[s] = load(x + (row + s * apart) * width + column + j * lanes, n) - center[j];
                               square[s] = d[s] * d[s];
                             }
                             sum[j] += pairwise_sum(d);
                             squares[j] += pairwise_sum(square);
                           }
                         add_tile(mean + column, n, sum);
                         add_tile(m2 + column, n, squares);
                       };
  for_each_tile<lanes, kStreams>(rows, add);
  const C inverse = static_cast<C>(1.0 / static_cast<double>(count));
  for (int64_t c = rows.first; c < end; c++) {
    const C sum = mean[c];
    mean[c] = shift[c] + sum * inverse;
    m2[c] -= sum * sum * inverse;
  }
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

// Merges the partial moments of `block` channels from `first` on: partial is [chunk][mean, m2][column].
template <class C>
void merge_channels(const BatchNormActArgs& args, const BatchNormWalk& walk, const C* partial,
                    const Columns<C>& columns, int64_t first, int64_t block) {
  const int64_t fold = walk.fold;
  double mean[kMergeBlock] = {}, m2[kMergeBlock] = {}, count = 0;
  for (int64_t chunk = 0; chunk < walk.chunks; chunk++) {
    const double rows = static_cast<double>(chunk_count(walk, chunk));
    const C* means = partial + 2 * chunk * walk.shape.channels + first * fold;
    const C* m2s = means + walk.shape.channels;
    double chunk_mean[kMergeBlock] = {}, chunk_m2[kMergeBlock] = {};
    add_columns(means, block, fold, chunk_mean);
    add_columns(m2s, block, fold, chunk_m2);
    if (fold > 1)
      for (int64_t i = 0; i < block; i++) {
        chunk_mean[i] /= static_cast<double>(fold);
        for (int64_t j = i * fold; j < (i + 1) * fold; j++) {
          const double d = means[j] - chunk_mean[i];
          chunk_m2[i] += rows * d * d;
        }
      }
    double total = count;
    for (int64_t i = 0; i < block; i++) {
      total = count;
      merge(total, mean[i], m2[i], rows * static_cast<double>(fold), chunk_mean[i], chunk_m2[i]);
    }
    count = total;
  }
  for (int64_t i = 0; i < block; i++) finish_channel(args, columns, first + i, fold, mean[i], m2[i]);
}

// --- normalisation ---------------------------------------------------------------------------------------------------

template <class T, Activation activation, class C = compute_t<T>>
void planar_apply(const BatchNormActArgs& args, const Columns<C>& columns, int64_t channel, int64_t offset,
                  int64_t count, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const V mean = broadcast<V>(columns.mean[channel]), scale = broadcast<V>(columns.scale[channel]);
  const V bias = broadcast<V>(columns.bias[channel]);
  const C slope = static_cast<C>(args.negative_slope);
  const auto value = [&](int64_t i, int64_t n) GENCORE_LAMBDA {
    V u = (load(x + i, n) - mean) * scale + bias;
    if (residual) u += load(residual + i, n);
    return activate<activation>(u, slope);
  };
  if (streaming)
    for (int64_t i = offset; i < offset + count; i += lanes) stream(y + i, value(i, lanes));
  else
    for_each_vector<lanes>(
        count, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA { store(y + offset + i, value(offset + i, n), n); });
}

template <class T, Activation activation, class C = compute_t<T>>
void row_apply(const BatchNormActArgs& args, int64_t width, const Columns<C>& columns, const Rows& rows,
               bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const C slope = static_cast<C>(args.negative_slope);
  const auto apply = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                   int64_t n) GENCORE_LAMBDA {
    V mean[vectors], scale[vectors], bias[vectors];
    load_tile(columns.mean + column, n, mean);
    load_tile(columns.scale + column, n, scale);
    load_tile(columns.bias + column, n, bias);
    for (int64_t row = first; row < last; row++)
      for (int j = 0; j < vectors; j++)
        for (int s = 0; s < streams; s++) {
          const int64_t i = (row + s * apart) * width + column + j * lanes;
          V u = (load(x + i, n) - mean[j]) * scale[j] + bias[j];
          if (residual) u += load(residual + i, n);
          const V value = activate<activation>(u, slope);
          if (streaming)
            stream(y + i, value);
          else
            store(y + i, value, n);
        }
  };
  for_each_tile<lanes, 2>(rows, apply);
}

// --- the whole -------------------------------------------------------------------------------------------------------

template <class T, Activation activation, class C = compute_t<T>>
void forward(const BatchNormActArgs& args) {
  const BatchNormWalk walk = batch_norm_walk(args.shape, args.samples);
  const BatchNormShape& shape = walk.shape;
  const int64_t chunks = walk.chunks, width = shape.channels;
  const T* x = static_cast<const T*>(args.x);
  C* partial = static_cast<C*>(args.workspace);
  C* after = partial + 2 * chunks * width;
  const Columns<C> columns{after, after + width, after + (1 + args.samples) * width};
  const bool streaming = shape.numel() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                         reinterpret_cast<uintptr_t>(args.y) % 64 == 0 &&
                         (walk.planar ? shape.inner : width) % Vector<C>::lanes == 0;

  const auto piece_moments = [&](const Piece& piece) {
    C* mean = partial + 2 * piece.chunk * width + piece.channel;
    planar_chunk(x + piece.offset, piece.count, mean, mean + width);
  };
  const auto apply_piece = [&](const Piece& piece) {
    planar_apply<T, activation>(args, columns.of(piece.sample, width), piece.channel, piece.offset, piece.count,
                                streaming);
  };

  if (args.training && walk.planar && shape.outer == 1 && width >= 2 * num_threads() &&
      shape.inner * static_cast<int64_t>(sizeof(T)) <= kResidentBytes) {
    parallel_for(0, width, kGrain / shape.inner + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c++) {
        for (int64_t i = c * chunks; i < (c + 1) * chunks; i++) piece_moments(piece_of(walk, i));
        merge_channels(args, walk, partial, columns, c, 1);
        for (int64_t i = c * chunks; i < (c + 1) * chunks; i++) apply_piece(piece_of(walk, i));
      }
      if (streaming) stream_fence();
    });
    return;
  }

  if (args.training) {
    for_each_chunk(walk, false, [&](int64_t i) {
      if (walk.planar) return piece_moments(piece_of(walk, i));
      const Rows rows = rows_of(walk, i);
      C* mean = partial + 2 * rows.chunk * width;
      row_chunk(x, width, rows, mean, mean + width);
    });
    for_each_channel_block(walk.channels, chunks * walk.fold, [&](int64_t first, int64_t block) {
      merge_channels(args, walk, partial, columns, first, block);
    });
  } else {
    set_all_columns<C>(args, columns, walk);
  }
  for_each_chunk(walk, args.training, [&](int64_t i) {
    if (walk.planar) return apply_piece(piece_of(walk, i));
    const Rows rows = rows_of(walk, i);
    row_apply<T, activation>(args, width, columns.of(rows.sample, width), rows, streaming);
  });
}

}  // namespace

void batch_norm_act(const BatchNormActArgs& args) {
  const int64_t numel = args.shape.numel(), affine = args.samples * args.shape.channels;
  const int64_t size = size_of(args.dtype), compute_size = compute_size_of(args.dtype);
  const int64_t workspace = batch_norm_walk(args.shape, args.samples).workspace;
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
