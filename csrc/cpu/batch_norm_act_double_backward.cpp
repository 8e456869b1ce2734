// The gradient of batch norm's gradient, for batch statistics and activations of two half-lines (their own derivative
// has none). The backward's results have cotangents: u of grad_x, p of grad_weight, q of grad_bias. With
// d = x - mean, s = invstd, w the weight, g = grad_y act'(d s w + bias), M elements in a channel and, of a channel,
//   U = mean u,  G = mean w g,  c = s mean(u d),  e = s mean(w g d),  A = sum(u w g) - M (U G + c e),
// the backward is  s (w g - G - d s e),  and the cotangent times it, added up, is s A. Differentiated:
//   grad_grad_y = act' (w s (u - U - d s c) + p d s + q)
//   grad_w      = s sum g (u - U - d s c),  over a sample where the weight is a sample's
//   grad_x      = s ((p - w s c) g - s e u - h - d s k) - d s^3 A / M
// with h = mean p g - s (U e + G c) and k = s mean(p g d) - 2 s c e, the means that a normalisation takes off.
#include "cpu/batch_norm_loops.h"

namespace gencore::GENCORE_ISA {

namespace {

// What is summed: u, u d, g, g d, u g.
enum Sum { kU, kUd, kG, kGd, kUg, kSums };

// Constants as the loops read them, one value a column; the last four for each sample.
// grad_grad_y = act' (scale u + slope d + offset), grad_x = slope g + of_u u + of_d d + constant.
template <class C>
struct Columns {
  C *mean, *of_u, *of_d, *constant, *scale, *bias, *slope, *offset;
  Columns of(int64_t sample, int64_t width) const {
    const int64_t at = sample * width;
    return {mean, of_u, of_d, constant, scale + at, bias + at, slope + at, offset + at};
  }
};

template <class T, Activation activation, class C = compute_t<T>>
struct Reader {
  using V = vector_t<C>;
  const T *grad_y, *x, *cotangent;
  C negative_slope;

  explicit GENCORE_INLINE Reader(const BatchNormActDoubleBackwardArgs& args)
      : grad_y(static_cast<const T*>(args.grad_y)),
        x(static_cast<const T*>(args.x)),
        cotangent(static_cast<const T*>(args.cotangent)),
        negative_slope(static_cast<C>(args.negative_slope)) {}

  GENCORE_INLINE V slope(V value, V before) const {
    return activation_gradient<activation>(value, before, negative_slope);
  }
  // Lanes behind the end have u = 0 and grad_y = 0, and add nothing to any sum.
  GENCORE_INLINE void add(int64_t i, int64_t n, V mean, V scale, V bias, V (&sum)[kSums]) const {
    const V d = load(x + i, n) - mean, u = load(cotangent + i, n);
    const V g = slope(load(grad_y + i, n), d * scale + bias);
    sum[kU] += u;
    sum[kUd] += u * d;
    sum[kG] += g;
    sum[kGd] += g * d;
    sum[kUg] += u * g;
  }
};

template <class T, Activation activation, class C = compute_t<T>>
void planar_sums(const BatchNormActDoubleBackwardArgs& args, int64_t width, const Columns<C>& columns,
                 const Piece& piece, C* sums) {
  using V = vector_t<C>;
  const Reader<T, activation> reader(args);
  const auto at = [&](const C* column) { return broadcast<V>(column[piece.channel]); };
  const V mean = at(columns.mean), scale = at(columns.scale), bias = at(columns.bias);
  V sum[4][kSums] = {};
  for_each_vector<Vector<C>::lanes>(piece.count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
    reader.add(piece.offset + i, n, mean, scale, bias, sum[slot]);
  });
  for (int k = 0; k < kSums; k++)
    sums[k * width] = static_cast<C>(horizontal_sum((sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k])));
}

template <class T, Activation activation, class C = compute_t<T>>
void row_sums(const BatchNormActDoubleBackwardArgs& args, int64_t width, const Columns<C>& columns, const Rows& rows,
              C* sums) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Reader<T, activation> reader(args);
  for (int k = 0; k < kSums; k++)
    for (int64_t c = rows.first; c < rows.first + rows.columns; c++) sums[k * width + c] = C{0};
  const auto add = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                 int64_t n) GENCORE_LAMBDA {
    for (int64_t c = column; c < column + vectors * lanes; c += lanes) {
      const V mean = load(columns.mean + c, n), scale = load(columns.scale + c, n), bias = load(columns.bias + c, n);
      V sum[kSums] = {};
      for (int64_t row = first; row < last; row++)
        for (int s = 0; s < streams; s++) reader.add((row + s * apart) * width + c, n, mean, scale, bias, sum);
      for (int k = 0; k < kSums; k++) {
        C* to = sums + k * width + c;
        store(to, load(to, n) + sum[k], n);
      }
    }
  };
  for_each_tile<lanes, 2>(rows, add);
}

// The sums of all chunks of `block` channels from `first` on become the constants of these, and grad_weight.
template <class C>
void merge_channels(const BatchNormActDoubleBackwardArgs& args, const BatchNormWalk& walk, C* partial,
                    const Columns<C>& columns, int64_t first, int64_t block) {
  const int64_t width = walk.shape.channels, fold = walk.fold;
  const double count = static_cast<double>(args.shape.count());
  const auto value = [](const void* array, int64_t i, double otherwise) {
    return array ? static_cast<double>(static_cast<const C*>(array)[i]) : otherwise;
  };
  double total[kSums][kMergeBlock] = {}, total_pg[kMergeBlock] = {}, total_pgd[kMergeBlock] = {};
  for (int64_t n = 0; n < args.samples; n++) {
    double sum[kSums][kMergeBlock] = {};
    for (int64_t chunk = n * walk.sample_chunks; chunk < (n + 1) * walk.sample_chunks; chunk++)
      for (int k = 0; k < kSums; k++)
        add_columns(partial + (chunk * kSums + k) * width + first * fold, block, fold, sum[k]);
    for (int64_t i = 0; i < block; i++) {
      const int64_t index = n * args.shape.channels + first + i;
      const double weight = value(args.weight, index, 1), p = value(args.weight_cotangent, index, 0);
      for (int k = 0; k < kSums; k++) {
        total[k][i] += k == kU || k == kUd ? sum[k][i] : weight * sum[k][i];
        // A sample's own sums are wanted once more: they lie where those of its first chunk were.
        partial[(n * walk.sample_chunks * kSums + k) * width + (first + i) * fold] = static_cast<C>(sum[k][i]);
      }
      total_pg[i] += p * sum[kG][i];
      total_pgd[i] += p * sum[kGd][i];
    }
  }
  for (int64_t i = 0; i < block; i++) {
    const int64_t channel = first + i;
    const double s = channel_invstd<C>(args.var, args.eps, channel);
    const double u = total[kU][i] / count, g = total[kG][i] / count;
    const double c = s * total[kUd][i] / count, e = s * total[kGd][i] / count;
    const double a = total[kUg][i] / count - (u * g + c * e);  // A / M
    const double h = total_pg[i] / count - s * (u * e + g * c), k = s * (total_pgd[i] / count - 2 * c * e);
    fill_columns(columns.of_u, channel, fold, static_cast<C>(-s * s * e));
    fill_columns(columns.of_d, channel, fold, static_cast<C>(-s * s * (k + s * a)));
    fill_columns(columns.constant, channel, fold, static_cast<C>(-s * h));
    for (int64_t n = 0; n < args.samples; n++) {
      const int64_t index = n * args.shape.channels + channel;
      const double weight = value(args.weight, index, 1), p = value(args.weight_cotangent, index, 0);
      const C* sums = partial + n * walk.sample_chunks * kSums * width + channel * fold;
      fill_columns(columns.slope, index, fold, static_cast<C>(s * (p - weight * s * c)));
      fill_columns(columns.offset, index, fold, static_cast<C>(value(args.bias_cotangent, index, 0) - weight * s * u));
      static_cast<C*>(args.grad_weight)[index] =
          static_cast<C>(s * (sums[kUg * width] - u * sums[kG * width] - c * s * sums[kGd * width]));
    }
  }
}

// Both results at element i.
template <class T, Activation activation, class C = compute_t<T>>
struct Writer {
  using V = vector_t<C>;
  Reader<T, activation> reader;
  T *grad_grad_y, *grad_x;

  explicit GENCORE_INLINE Writer(const BatchNormActDoubleBackwardArgs& args)
      : reader(args), grad_grad_y(static_cast<T*>(args.grad_grad_y)), grad_x(static_cast<T*>(args.grad_x)) {}

  GENCORE_INLINE void operator()(int64_t i, int64_t n, V mean, V of_u, V of_d, V constant, V scale, V bias, V slope,
                                 V offset) const {
    const V d = load(reader.x + i, n) - mean, u = load(reader.cotangent + i, n), before = d * scale + bias;
    const V g = reader.slope(load(reader.grad_y + i, n), before);
    store(grad_grad_y + i, reader.slope(scale * u + slope * d + offset, before), n);
    store(grad_x + i, slope * g + of_u * u + of_d * d + constant, n);
  }
};

template <class T, Activation activation, class C = compute_t<T>>
void planar_apply(const BatchNormActDoubleBackwardArgs& args, const Columns<C>& of, const Piece& piece) {
  using V = vector_t<C>;
  const Writer<T, activation> write(args);
  const auto at = [&](const C* column) { return broadcast<V>(column[piece.channel]); };
  const V mean = at(of.mean), of_u = at(of.of_u), of_d = at(of.of_d), constant = at(of.constant);
  const V scale = at(of.scale), bias = at(of.bias), slope = at(of.slope), offset = at(of.offset);
  for_each_vector<Vector<C>::lanes>(piece.count, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
    write(piece.offset + i, n, mean, of_u, of_d, constant, scale, bias, slope, offset);
  });
}

template <class T, Activation activation, class C = compute_t<T>>
void row_apply(const BatchNormActDoubleBackwardArgs& args, int64_t width, const Columns<C>& of, const Rows& rows) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const Writer<T, activation> write(args);
  const auto apply = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                   int64_t n) GENCORE_LAMBDA {
    for (int64_t c = column; c < column + vectors * lanes; c += lanes) {
      const auto at = [&](const C* of_column) GENCORE_LAMBDA { return load(of_column + c, n); };
      const V mean = at(of.mean), of_u = at(of.of_u), of_d = at(of.of_d), constant = at(of.constant);
      const V scale = at(of.scale), bias = at(of.bias), slope = at(of.slope), offset = at(of.offset);
      for (int64_t row = first; row < last; row++)
        for (int s = 0; s < streams; s++)
          write((row + s * apart) * width + c, n, mean, of_u, of_d, constant, scale, bias, slope, offset);
    }
  };
  for_each_tile<lanes, 2>(rows, apply);
}

template <class T, Activation activation, class C = compute_t<T>>
void double_backward(const BatchNormActDoubleBackwardArgs& args) {
  const BatchNormWalk walk = batch_norm_walk(args.shape, args.samples);
  const BatchNormShape& shape = walk.shape;
  const int64_t chunks = walk.chunks, width = shape.channels, affine = args.samples * width;
  C* partial = static_cast<C*>(args.workspace);
  C* one = partial + kSums * chunks * width;  // for each column
  C* each = one + 4 * width;                  // and sample
  const Columns<C> columns{one,  one + width,   one + 2 * width,   one + 3 * width,
                           each, each + affine, each + 2 * affine, each + 3 * affine};
  set_all_columns<C>(args, columns, walk);
  for_each_chunk(walk, false, [&](int64_t i) {
    if (walk.planar) {
      const Piece piece = piece_of(walk, i);
      C* sums = partial + piece.chunk * kSums * width + piece.channel;
      return planar_sums<T, activation>(args, width, columns.of(piece.sample, width), piece, sums);
    }
    const Rows rows = rows_of(walk, i);
    C* sums = partial + rows.chunk * kSums * width;
    row_sums<T, activation>(args, width, columns.of(rows.sample, width), rows, sums);
  });
  for_each_channel_block(walk.channels, chunks * walk.fold, [&](int64_t first, int64_t block) {
    merge_channels(args, walk, partial, columns, first, block);
  });
  for_each_chunk(walk, true, [&](int64_t i) {
    if (walk.planar) {
      const Piece piece = piece_of(walk, i);
      return planar_apply<T, activation>(args, columns.of(piece.sample, width), piece);
    }
    const Rows rows = rows_of(walk, i);
    row_apply<T, activation>(args, width, columns.of(rows.sample, width), rows);
  });
}

template <class T>
void double_backward(const BatchNormActDoubleBackwardArgs& args) {
  switch (args.activation) {
    case Activation::relu:
      return double_backward<T, Activation::relu>(args);
    case Activation::leaky_relu:
      return double_backward<T, Activation::leaky_relu>(args);
    default:
      return double_backward<T, Activation::identity>(args);
  }
}

}  // namespace

void batch_norm_act_double_backward(const BatchNormActDoubleBackwardArgs& args) {
  const int64_t numel = args.shape.numel(), channels = args.shape.channels, affine = args.samples * channels;
  const int64_t size = size_of(args.dtype), compute_size = compute_size_of(args.dtype);
  const int64_t workspace = batch_norm_walk(args.shape, args.samples).double_backward_workspace;
  for_each_instance(
      args,
      [&](BatchNormActDoubleBackwardArgs& one, int64_t i) {
        one.grad_y = at_instance(one.grad_y, i, numel, size);
        one.x = at_instance(one.x, i, numel, size);
        one.cotangent = at_instance(one.cotangent, i, numel, size);
        one.grad_grad_y = at_instance(one.grad_grad_y, i, numel, size);
        one.grad_x = at_instance(one.grad_x, i, numel, size);
        one.weight = at_instance(one.weight, i, affine, compute_size);
        one.bias = at_instance(one.bias, i, affine, compute_size);
        one.weight_cotangent = at_instance(one.weight_cotangent, i, affine, compute_size);
        one.bias_cotangent = at_instance(one.bias_cotangent, i, affine, compute_size);
        one.grad_weight = at_instance(one.grad_weight, i, affine, compute_size);
        one.mean = at_instance(one.mean, i, channels, compute_size);
        one.var = at_instance(one.var, i, channels, compute_size);
        one.workspace = at_instance(one.workspace, i, workspace, compute_size);
      },
      [](const BatchNormActDoubleBackwardArgs& one) {
        GENCORE_DISPATCH_DTYPE(one.dtype, double_backward<scalar_t>(one))
      });
}

}  // namespace gencore::GENCORE_ISA
