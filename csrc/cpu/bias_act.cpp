#include "cpu/bias_act.h"

#include "cpu/bias_act_loops.h"

namespace gencore::GENCORE_ISA {

namespace {

// Elements of a plane that are one task.
constexpr int64_t kPart = 16384;

// Elements [begin, end) of one plane.
template <class T, Activation activation, class C = compute_t<T>>
void planar(const BiasActArgs& args, int64_t plane, int64_t begin, int64_t end, bool streaming) {
  using V = vector_t<C>;
  const BiasActConstants<C> constants(args);
  const int64_t n = plane / args.shape.channels, c = plane % args.shape.channels;
  const BiasActRow<C> row(args, n);
  const T* x = static_cast<const T*>(args.x) + plane * args.shape.pixels;
  T* y = static_cast<T*>(args.y) + plane * args.shape.pixels;
  const V scale = broadcast<V>(row.scale ? row.scale[c] : C{1}), bias = broadcast<V>(row.bias ? row.bias[c] : C{0});
  for_each_vector<Vector<C>::lanes>(end - begin, [&](int64_t i, int64_t count, int) GENCORE_LAMBDA {
    V u = load(x + begin + i, count) * scale;
    if (row.noise) u += load(row.noise + begin + i, count);
    put(y + begin + i, constants.template apply<activation>(u + bias), count, streaming);
  });
}

// Pixels [begin, end) of one sample, whose channels lie side by side.
template <class T, Activation activation, class C = compute_t<T>>
void channels_last(const BiasActArgs& args, int64_t n, int64_t begin, int64_t end, bool streaming) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const BiasActConstants<C> constants(args);
  const BiasActRow<C> row(args, n);
  const int64_t channels = args.shape.channels, offset = n * args.shape.pixels * channels;
  const T* x = static_cast<const T*>(args.x) + offset;
  T* y = static_cast<T*>(args.y) + offset;
  const auto apply = [&]<int vectors, int streams>(int64_t first, int64_t last, int64_t apart, int64_t column,
                                                   int64_t count) GENCORE_LAMBDA {
    const BiasActColumns<C, vectors> columns(row, column, count);
    for (int64_t pixel = first; pixel < last; pixel++)
      for (int s = 0; s < streams; s++) {
        const int64_t p = pixel + s * apart;
        const V noise = broadcast<V>(row.noise ? row.noise[p] : C{0});
        for (int j = 0; j < vectors; j++) {
          const int64_t i = p * channels + column + j * lanes;
          const V u = load(x + i, count) * columns.scale[j] + noise + columns.bias[j];
          put(y + i, constants.template apply<activation>(u), count, streaming);
        }
      }
  };
  for_each_tile<lanes, 2>({begin, end, 0, channels}, apply);
}

template <class T, Activation activation, class C = compute_t<T>>
void forward(const BiasActArgs& args) {
  const BiasActShape& s = args.shape;
  const bool streaming = bias_act_streams<T>(s, args.y);
  // One sample's pixels (or one plane's) are cut into parts; a part is what a thread takes at least.
  const int64_t size = s.channels_last ? kPart / s.channels + 1 : kPart;
  const int64_t parts = (s.pixels + size - 1) / size, rows = s.channels_last ? s.batch : s.batch * s.channels;
  const int64_t work = (s.pixels < size ? s.pixels : size) * (s.channels_last ? s.channels : 1);
  parallel_for(0, rows * parts, kBiasActGrain / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t from = task % parts * size, to = from + size < s.pixels ? from + size : s.pixels;
      if (s.channels_last)
        channels_last<T, activation>(args, task / parts, from, to, streaming);
      else
        planar<T, activation>(args, task / parts, from, to, streaming);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void bias_act(const BiasActArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype,
                         GENCORE_DISPATCH_ANY_ACTIVATION(args.activation, forward<scalar_t, kActivation>(args)))
}

}  // namespace gencore::GENCORE_ISA
