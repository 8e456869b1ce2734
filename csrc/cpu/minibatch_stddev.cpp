#include "cpu/minibatch_stddev.h"

#include "gencore/parallel.h"
#include "gencore/scratch.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;
// Elements of a sample that make one block of the sums.
constexpr int64_t kBlock = 2048;

// The elements of one slice in one block, as runs of neighbours.
struct Blocks {
  int64_t runs;  // pixels of a block where the samples are channels_last
  int64_t count;
  explicit Blocks(const MinibatchStddevArgs& args)
      : runs(kBlock / args.width() + 1),
        count(args.channels_last ? (args.pixels + runs - 1) / runs : (args.slice() + kBlock - 1) / kBlock) {}

  // body(offset in a sample of x, offset in a sample of y, elements).
  template <class Body>
  GENCORE_INLINE void for_each_run(const MinibatchStddevArgs& args, int64_t map, int64_t block,
                                   const Body& body) const {
    const int64_t width = args.width(), slice = args.slice();
    if (args.channels_last) {
      const int64_t first = block * runs, end = first + runs < args.pixels ? first + runs : args.pixels;
      for (int64_t p = first; p < end; p++)
        body(p * args.channels + map * width, p * args.y_channels() + map * width, width);
    } else {
      const int64_t first = block * kBlock, left = slice - first;
      body(map * slice + first, map * slice + first, left < kBlock ? left : kBlock);
    }
  }
};

// One vector of elements in all samples of a group: what they are, and their mean and standard deviation.
//
// Where the values nearly agree, the rounding of the mean is large beside their deviations: what these sum up to,
// instead of zero, is taken off again.
template <class T, class C = compute_t<T>, class V = vector_t<C>>
struct Column {
  const T* x;  // of the group's first sample
  int64_t stride, n;
  V mean, stddev, residual;

  // copy(sample of the group, value) sees every value once, while it is first read.
  template <class Copy>
  GENCORE_INLINE Column(const MinibatchStddevArgs& args, const T* x, int64_t n, const Copy& copy)
      : x(x), stride(args.groups() * args.sample()), n(n) {
    const V size = broadcast<V>(static_cast<double>(args.group));
    V sum{}, squares{}, residues{};
    for (int64_t g = 0; g < args.group; g++) {
      const V v = value(g);
      copy(g, v);
      sum += v;
    }
    mean = sum / size;
    for (int64_t g = 0; g < args.group; g++) {
      const V deviation = value(g) - mean;
      squares += deviation * deviation;
      residues += deviation;
    }
    residual = residues / size;
    stddev = square_root(squares / size + broadcast<V>(args.eps));
  }
  GENCORE_INLINE V value(int64_t g) const { return load(x + g * stride, n); }
  GENCORE_INLINE V deviation(int64_t g) const { return value(g) - mean - residual; }
};

// body(group, map, block) for all of them, in parallel.
template <class Body>
void for_each_block(const MinibatchStddevArgs& args, const Blocks& blocks, const Body& body) {
  const int64_t slice = args.slice(), work = (slice < kBlock ? slice : kBlock) * args.group;
  parallel_for(0, args.groups() * args.maps * blocks.count, kGrain / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = task / blocks.count;
      body(row / args.maps, row % args.maps, task % blocks.count);
    }
  });
}

// body(sample, map) for all maps of all samples, in parallel.
template <class Body>
void for_each_map(const MinibatchStddevArgs& args, const Body& body) {
  parallel_for(0, args.batch * args.maps, kGrain / args.pixels + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) body(task / args.maps, task % args.maps);
  });
}

// The sum of standard deviations over one block of a slice; x goes to y on the way.
template <class T, class C = compute_t<T>>
double copy_and_sum(const MinibatchStddevArgs& args, const Blocks& blocks, int64_t group, int64_t map, int64_t block) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x) + group * args.sample();
  T* y = static_cast<T*>(args.result) + group * args.y_sample();
  const int64_t stride = args.groups() * args.y_sample();
  V total[4] = {};
  blocks.for_each_run(args, map, block, [&](int64_t from, int64_t to, int64_t count) GENCORE_LAMBDA {
    for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
      const Column<T> column(args, x + from + i, n,
                             [&](int64_t g, V v) GENCORE_LAMBDA { store(y + g * stride + to + i, v, n); });
      total[slot] += first_lanes(column.stddev, n);
    });
  });
  return horizontal_sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <class T, class C = compute_t<T>>
void write_map(const MinibatchStddevArgs& args, int64_t sample, int64_t map, double value) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const V v = broadcast<V>(value);
  T* y = static_cast<T*>(args.result) + sample * args.y_sample();
  if (args.channels_last)
    for (int64_t p = 0; p < args.pixels; p++) store(y + p * args.y_channels() + args.channels + map, v, int64_t{1});
  else
    for_each_vector<lanes>(args.pixels, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      store(y + (args.channels + map) * args.pixels + i, v, n);
    });
}

template <class T>
void forward(const MinibatchStddevArgs& args) {
  const Blocks blocks(args);
  const int64_t rows = args.groups() * args.maps;
  double* sums = static_cast<double*>(scratch(Scratch::shared, (rows * blocks.count + rows) * sizeof(double)));
  double* means = sums + rows * blocks.count;
  for_each_block(args, blocks, [&](int64_t group, int64_t map, int64_t block) {
    sums[(group * args.maps + map) * blocks.count + block] = copy_and_sum<T>(args, blocks, group, map, block);
  });
  for (int64_t row = 0; row < rows; row++) {
    means[row] = 0;
    for (int64_t block = 0; block < blocks.count; block++) means[row] += sums[row * blocks.count + block];
    means[row] /= static_cast<double>(args.slice());
  }
  for_each_map(args, [&](int64_t sample, int64_t map) {
    write_map<T>(args, sample, map, means[sample % args.groups() * args.maps + map]);
  });
}

template <class T, class C = compute_t<T>>
double sum_map(const MinibatchStddevArgs& args, int64_t sample, int64_t map) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* grad_y = static_cast<const T*>(args.grad_y) + sample * args.y_sample();
  double sum = 0;
  if (args.channels_last) {
    for (int64_t p = 0; p < args.pixels; p++)
      sum += horizontal_sum(load(grad_y + p * args.y_channels() + args.channels + map, int64_t{1}));
  } else {
    for (int64_t first = 0; first < args.pixels; first += kBlock) {
      const int64_t left = args.pixels - first;
      V total[4] = {};
      for_each_vector<lanes>(left < kBlock ? left : kBlock, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
        total[slot] += load(grad_y + (args.channels + map) * args.pixels + first + i, n);
      });
      sum += horizontal_sum((total[0] + total[1]) + (total[2] + total[3]));
    }
  }
  return sum;
}

// grad_x = grad_y + share (x - mean) / stddev over one block of a slice.
template <class T, class C = compute_t<T>>
void add_deviations(const MinibatchStddevArgs& args, const Blocks& blocks, int64_t group, int64_t map, int64_t block,
                    double share) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* x = static_cast<const T*>(args.x) + group * args.sample();
  const T* grad_y = static_cast<const T*>(args.grad_y) + group * args.y_sample();
  T* grad_x = static_cast<T*>(args.result) + group * args.sample();
  const int64_t x_stride = args.groups() * args.sample(), y_stride = args.groups() * args.y_sample();
  blocks.for_each_run(args, map, block, [&](int64_t from, int64_t to, int64_t count) GENCORE_LAMBDA {
    for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      const Column<T> column(args, x + from + i, n, [](int64_t, V) GENCORE_LAMBDA {});
      const V factor = broadcast<V>(share) / column.stddev;
      for (int64_t g = 0; g < args.group; g++)
        store(grad_x + g * x_stride + from + i, load(grad_y + g * y_stride + to + i, n) + column.deviation(g) * factor,
              n);
    });
  });
}

template <class T>
void backward(const MinibatchStddevArgs& args) {
  const Blocks blocks(args);
  const int64_t rows = args.groups() * args.maps;
  double* sums = static_cast<double*>(scratch(Scratch::shared, (args.batch * args.maps + rows) * sizeof(double)));
  double* shares = sums + args.batch * args.maps;
  for_each_map(args,
               [&](int64_t sample, int64_t map) { sums[sample * args.maps + map] = sum_map<T>(args, sample, map); });
  for (int64_t row = 0; row < rows; row++) {
    shares[row] = 0;
    for (int64_t g = 0; g < args.group; g++) shares[row] += sums[g * rows + row];
    shares[row] /= static_cast<double>(args.slice() * args.group);
  }
  for_each_block(args, blocks, [&](int64_t group, int64_t map, int64_t block) {
    add_deviations<T>(args, blocks, group, map, block, shares[group * args.maps + map]);
  });
}

}  // namespace

void minibatch_stddev(const MinibatchStddevArgs& args) { GENCORE_DISPATCH_DTYPE(args.dtype, forward<scalar_t>(args)) }

void minibatch_stddev_backward(const MinibatchStddevArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, backward<scalar_t>(args))
}

}  // namespace gencore::GENCORE_ISA
