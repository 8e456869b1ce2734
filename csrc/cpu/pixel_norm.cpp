#include "cpu/pixel_norm.h"

#include "gencore/parallel.h"
#include "gencore/tile.h"

namespace gencore::GENCORE_ISA {

namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;
// Outputs at least this large are written past the caches.
constexpr int64_t kStreamBytes = 16 << 20;
// Terms that one float adds up before they join the sum of sums: rounding grows with the length of a run.
constexpr int64_t kRun = 32;

// Vectors of pixels whose sums stay in registers, of which AVX-512 has twice as many.
template <bool gradient>
constexpr int kTile = (gradient ? 4 : 8) * (kLanes == 16 ? 2 : 1);

template <class T, bool gradient>
struct Operands {
  using C = compute_t<T>;
  using V = vector_t<C>;
  const T *x, *grad_y;
  T* result;
  bool streaming;

  Operands(const PixelNormArgs& args, int64_t offset, bool streaming)
      : x(static_cast<const T*>(args.x) + offset),
        grad_y(gradient ? static_cast<const T*>(args.grad_y) + offset : nullptr),
        result(static_cast<T*>(args.result) + offset),
        streaming(streaming) {}

  GENCORE_INLINE void add(int64_t i, int64_t n, V* squares, V* products) const {
    const V v = load(x + i, n);
    *squares += v * v;
    if constexpr (gradient) *products += v * load(grad_y + i, n);
  }
  // projection: r^2 mean(grad_y x).
  GENCORE_INLINE void write(int64_t i, int64_t n, V r, V projection) const {
    V v = load(x + i, n);
    if constexpr (gradient) v = load(grad_y + i, n) - v * projection;
    if (streaming)
      stream(result + i, v * r);
    else
      store(result + i, v * r, n);
  }
};

// `vectors` vectors of neighbouring pixels, the last with n lanes. Their channels, `inner` apart, are read once from
// memory: what the second pass reads is in the cache, the last channels nearest.
template <class T, bool gradient, int vectors>
GENCORE_INLINE void pixels_of_planes(const PixelNormArgs& args, const Operands<T, gradient>& of, int64_t n) {
  using C = compute_t<T>;
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  V squares[vectors] = {}, products[vectors] = {};
  for (int64_t first = 0; first < args.channels; first += kRun) {
    const int64_t end = first + kRun < args.channels ? first + kRun : args.channels;
    V run_squares[vectors] = {}, run_products[vectors] = {};
    for (int64_t c = first; c < end; c++)
      for (int j = 0; j < vectors; j++) of.add(c * args.inner + j * lanes, n, &run_squares[j], &run_products[j]);
    for (int j = 0; j < vectors; j++) squares[j] += run_squares[j], products[j] += run_products[j];
  }
  const V channels = broadcast<V>(static_cast<double>(args.channels)), eps = broadcast<V>(args.eps);
  V r[vectors], projection[vectors];
  for (int j = 0; j < vectors; j++) {
    r[j] = C{1} / square_root(squares[j] / channels + eps);
    projection[j] = r[j] * r[j] * (products[j] / channels);
  }
  for (int64_t c = args.channels - 1; c >= 0; c--)
    for (int j = 0; j < vectors; j++) of.write(c * args.inner + j * lanes, n, r[j], projection[j]);
}

// A pixel whose channels lie side by side.
template <class T, bool gradient>
void row(const PixelNormArgs& args, const Operands<T, gradient>& of) {
  using C = compute_t<T>;
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  constexpr int64_t run = 4 * kRun * lanes;
  double squares = 0, products = 0;
  for (int64_t first = 0; first < args.channels; first += run) {
    const int64_t left = args.channels - first;
    V s[4] = {}, p[4] = {};
    for_each_vector<lanes>(left < run ? left : run, [&](int64_t i, int64_t n, int slot)
                                                        GENCORE_LAMBDA { of.add(first + i, n, &s[slot], &p[slot]); });
    squares += horizontal_sum((s[0] + s[1]) + (s[2] + s[3]));
    if constexpr (gradient) products += horizontal_sum((p[0] + p[1]) + (p[2] + p[3]));
  }
  const double channels = static_cast<double>(args.channels);
  const double variance = squares / channels + args.eps;
  const V r = broadcast<V>(1.0 / __builtin_sqrt(variance)), projection = broadcast<V>(products / channels / variance);
  for_each_vector<lanes>(args.channels,
                         [&](int64_t i, int64_t n, int) GENCORE_LAMBDA { of.write(i, n, r, projection); });
}

// As many such pixels as a vector has lanes, of few channels: the lane sums of all are made together, and so are the
// roots.
template <class T, bool gradient>
void rows_of_lanes(const PixelNormArgs& args, const Operands<T, gradient>& of) {
  vfloat squares[kLanes], products[kLanes] = {};
#pragma GCC unroll 1
  for (int p = 0; p < kLanes; p++) {
    vfloat s[4] = {}, t[4] = {};
    for_each_vector<kLanes>(args.channels, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
      of.add(p * args.channels + i, n, &s[slot], &t[slot]);
    });
    squares[p] = (s[0] + s[1]) + (s[2] + s[3]);
    if constexpr (gradient) products[p] = (t[0] + t[1]) + (t[2] + t[3]);
  }
  fold<1>(squares);
  if constexpr (gradient) fold<1>(products);
  const vfloat channels = broadcast<vfloat>(static_cast<double>(args.channels));
  const vfloat r = 1.0f / square_root(squares[0] / channels + broadcast<vfloat>(args.eps));
  float roots[kLanes], projections[kLanes];
  store(roots, r);
  store(projections, r * r * (products[0] / channels));
#pragma GCC unroll 1
  for (int p = 0; p < kLanes; p++) {
    const vfloat root = broadcast<vfloat>(roots[p]), projection = broadcast<vfloat>(projections[p]);
    for_each_vector<kLanes>(args.channels, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      of.write(p * args.channels + i, n, root, projection);
    });
  }
}

template <class T, bool gradient>
void run_rows(const PixelNormArgs& args, bool streaming) {
  constexpr bool single = sizeof(compute_t<T>) == sizeof(float);
  const int64_t together = single && args.channels <= kRun * kLanes ? kLanes : 1;
  parallel_for(0, (args.outer + together - 1) / together, kGrain / (args.channels * together) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; task++) {
                   const int64_t pixel = task * together, left = args.outer - pixel;
                   if constexpr (single)
                     if (left >= together && together > 1) {
                       rows_of_lanes(args, Operands<T, gradient>(args, pixel * args.channels, streaming));
                       continue;
                     }
                   for (int64_t i = 0; i < together && i < left; i++)
                     row(args, Operands<T, gradient>(args, (pixel + i) * args.channels, streaming));
                 }
                 if (streaming) stream_fence();
               });
}

template <class T, bool gradient>
void run(const PixelNormArgs& args) {
  constexpr int64_t lanes = Vector<compute_t<T>>::lanes, tile = kTile<gradient> * lanes;
  const bool rows = args.inner == 1;
  const bool streaming = args.numel() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                         reinterpret_cast<uintptr_t>(args.result) % 64 == 0 &&
                         (rows ? args.channels : args.inner) % lanes == 0;
  if (rows) return run_rows<T, gradient>(args, streaming);
  const int64_t tiles = (args.inner + tile - 1) / tile;
  parallel_for(0, args.outer * tiles, kGrain / (args.channels * tile) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t pixel = task % tiles * tile, left = args.inner - pixel;
      const int64_t offset = task / tiles * args.channels * args.inner + pixel;
      if (left >= tile)
        pixels_of_planes<T, gradient, kTile<gradient>>(args, Operands<T, gradient>(args, offset, streaming), lanes);
      else
        for (int64_t i = 0; i < left; i += lanes)
          pixels_of_planes<T, gradient, 1>(args, Operands<T, gradient>(args, offset + i, streaming),
                                           left - i < lanes ? left - i : lanes);
    }
    if (streaming) stream_fence();
  });
}

}  // namespace

void pixel_norm(const PixelNormArgs& args) { GENCORE_DISPATCH_DTYPE(args.dtype, run<scalar_t, false>(args)) }

void pixel_norm_backward(const PixelNormArgs& args) { GENCORE_DISPATCH_DTYPE(args.dtype, run<scalar_t, true>(args)) }

}  // namespace gencore::GENCORE_ISA
