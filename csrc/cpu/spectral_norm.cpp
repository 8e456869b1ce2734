#include "cpu/spectral_norm.h"

#include "cpu/spectral_norm_products.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class C>
double dot(const C* a, const C* b, int64_t count) {
  using V = vector_t<C>;
  V sum[4] = {};
  for_each_vector<Vector<C>::lanes>(
      count, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA { sum[slot] += load(a + i, n) * load(b + i, n); });
  return horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// vector = product / its length, unless that is below eps.
template <class C>
void normalize(const C* product, int64_t count, double eps, C* vector) {
  const double length = __builtin_sqrt(dot(product, product, count));
  if (length < eps) return;
  const C inverse = static_cast<C>(1 / length);
  for (int64_t i = 0; i < count; i++) vector[i] = product[i] * inverse;
}

// --- one layer -------------------------------------------------------------------------------------------------------

// to[i] = from[i] * factor, in chunks.
template <class T, class C>
void scale_layer(const View<T>& view, C factor, bool backwards) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const T* from = static_cast<const T*>(view.layer.weight);
  T* to = static_cast<T*>(view.layer.normal);
  const int64_t numel = view.layer.numel();
  const bool streaming =
      numel * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && reinterpret_cast<uintptr_t>(to) % 64 == 0;
  const V by = broadcast<V>(factor);
  for_each_block(blocks_of(numel, kChunk), view.shared, backwards, [&](int64_t block) {
    const int64_t first = block * kChunk, count = least(kChunk, numel - first);
    if (streaming && count == kChunk)
      for (int64_t i = first; i < first + kChunk; i += lanes) stream(to + i, load(from + i) * by);
    else
      for_each_vector<lanes>(count, [&](int64_t i, int64_t n, int)
                                        GENCORE_LAMBDA { store(to + first + i, load(from + first + i, n) * by, n); });
    if (streaming) stream_fence();
  });
}

// A first product within these bounds can be multiplied by W before it is divided by its length, without loss.
constexpr double kShortest = 1e-10, kLongest = 1e10;

// Whether the product that comes first gives the columns' vector.
template <class T>
bool columns_first(const SpectralNormArgs& args, const View<T>& view) {
  return args.v_first != view.swapped;
}

template <class T, class C = compute_t<T>>
void normalize_layer(const SpectralNormArgs& args, const SpectralNormLayer& layer, C* space) {
  const View<T> view(layer);
  struct Side {
    bool columns;
    C *product, *vector;
    int64_t count;
  };
  C *row_product = space, *column_product = row_product + view.rows, *rest = column_product + view.columns();
  Side first{false, row_product, view.row_vector, view.rows};
  Side second{true, column_product, view.column_vector, view.columns()};
  const bool by_columns = columns_first(args, view);
  if (by_columns) {
    const Side rows = first;
    first = second, second = rows;
  }
  bool backwards = false;
  const auto multiply = [&](const Side& side) {
    if (side.columns)
      multiply_by_rows(view, side.product, backwards);
    else
      multiply_by_columns(view, side.product, backwards);
    backwards = !backwards;
  };
  // Both products in one pass, the second without the first's division by its length, which is returned; zero where
  // that cannot be.
  const auto multiply_both = [&](const auto& both) {
    if (!both.possible()) return 0.0;
    both.run(first.product, second.product, rest, backwards);
    backwards = !backwards;
    return __builtin_sqrt(dot(first.product, first.product, first.count));
  };
  for (int64_t i = 0; i < args.iterations; i++) {
    const double length = by_columns ? multiply_both(ColumnsFirst<T>(view)) : multiply_both(RowsFirst<T>(view));
    if (length >= args.eps && length > kShortest && length < kLongest) {
      normalize(first.product, first.count, args.eps, first.vector);
      const C inverse = static_cast<C>(1 / length);
      for (int64_t k = 0; k < second.count; k++) second.product[k] *= inverse;
    } else {
      multiply(first);
      normalize(first.product, first.count, args.eps, first.vector);
      multiply(second);
    }
    normalize(second.product, second.count, args.eps, second.vector);
  }
  // Without iterations one product gives sigma: the one that an iteration ends with.
  if (args.iterations == 0) multiply(second);
  const double sigma = dot(second.vector, second.product, second.count);
  *static_cast<C*>(layer.sigma) = static_cast<C>(sigma);
  if (layer.normal == nullptr) return;
  const C factor = static_cast<C>((sigma < 0 ? -sigma : sigma) < args.eps ? 1 : 1 / sigma);
  scale_layer(view, factor, backwards);
}

// grad_weight = G / sigma + (g_sigma - <G, W> / sigma^2) u v^T; without G, g_sigma u v^T.
template <class T, class C = compute_t<T>>
void differentiate_layer(const SpectralNormBackwardArgs& args, const SpectralNormLayer& layer, C* partial) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  const View<T> view(layer);
  const int64_t numel = layer.numel(), chunks = blocks_of(numel, kChunk);
  const T *weight = static_cast<const T*>(layer.weight), *grad = static_cast<const T*>(layer.grad);
  T* to = static_cast<T*>(layer.normal);
  const double sigma = *static_cast<const C*>(layer.sigma);
  const bool divided = (sigma < 0 ? -sigma : sigma) >= args.eps;
  double product = 0;
  if (divided && grad != nullptr) {
    for_each_block(chunks, view.shared, false, [&](int64_t chunk) {
      const int64_t first = chunk * kChunk;
      V sum[4] = {};
      for_each_vector<lanes>(least(kChunk, numel - first), [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
        sum[slot] += load(grad + first + i, n) * load(weight + first + i, n);
      });
      partial[chunk] = static_cast<C>(horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3])));
    });
    for (int64_t chunk = 0; chunk < chunks; chunk++) product += partial[chunk];
  }
  const double through_sigma = *static_cast<const C*>(layer.grad_sigma) - (divided ? product / sigma / sigma : 0);
  const V factor = broadcast<V>(divided ? 1 / sigma : 1);
  for_each_block(blocks_of(view.outer * view.rows, kRowBlock), view.shared, true, [&](int64_t block) {
    const int64_t first = block * kRowBlock, last = least(first + kRowBlock, view.outer * view.rows);
    for (int64_t row = first; row < last; row++) {
      const V slope = broadcast<V>(through_sigma * view.row_vector[row % view.rows]);
      const C* x = view.column_vector + row / view.rows * view.inner;
      for_each_vector<lanes>(view.inner, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
        const int64_t at = row * view.inner + i;
        const V through_normal = grad != nullptr ? load(grad + at, n) * factor : V{};
        store(to + at, through_normal + slope * load(x + i, n), n);
      });
    }
  });
}

// --- all layers ------------------------------------------------------------------------------------------------------

// The large layers one after another, by all threads; then the others, shared out by their sizes. space_of(layer) is
// what body(layer, space) needs, in elements of C.
template <class C, class Space, class Body>
void for_each_layer(const SpectralNormLayer* layers, int64_t count, const Space& space_of, const Body& body) {
  int64_t most = 0, small = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t needed = space_of(layers[i]);
    most = needed > most ? needed : most;
    small += layers[i].numel() < kLargeLayer ? layers[i].numel() : 0;
  }
  C* shared = static_cast<C*>(scratch(Scratch::shared, most * sizeof(C)));
  for (int64_t i = 0; i < count; i++)
    if (layers[i].numel() >= kLargeLayer) body(layers[i], shared);
  const int64_t workers = small < kLargeLayer / 16 ? 1 : num_threads();
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    C* own = static_cast<C*>(scratch(Scratch::worker, most * sizeof(C)));
    int64_t before = 0;
    for (int64_t i = 0; i < count; i++) {
      if (layers[i].numel() >= kLargeLayer) continue;
      // The middle of the layer decides whose it is.
      const int64_t worker = small > 0 ? (2 * before + layers[i].numel()) * workers / (2 * small + 1) : 0;
      if (begin <= worker && worker < end) body(layers[i], own);
      before += layers[i].numel();
    }
  });
}

}  // namespace

void spectral_norm(const SpectralNormArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, {
    for_each_layer<compute_t<scalar_t>>(
        args.layers, args.count,
        [&](const SpectralNormLayer& layer) {
          const View<scalar_t> view(layer);
          return view.rows + view.columns() +
                 (columns_first(args, view) ? ColumnsFirst<scalar_t>(view).space() : RowsFirst<scalar_t>(view).space());
        },
        [&](const SpectralNormLayer& layer, auto* space) { normalize_layer<scalar_t>(args, layer, space); });
  });
}

void spectral_norm_backward(const SpectralNormBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, {
    for_each_layer<compute_t<scalar_t>>(
        args.layers, args.count, [](const SpectralNormLayer& layer) { return blocks_of(layer.numel(), kChunk); },
        [&](const SpectralNormLayer& layer, auto* space) { differentiate_layer<scalar_t>(args, layer, space); });
  });
}

}  // namespace gencore::GENCORE_ISA
