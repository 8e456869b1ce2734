#include "cpu/spectral_norm.h"

#include "gencore/parallel.h"
#include "gencore/scratch.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int64_t kLargeLayer = int64_t{1} << 18;
// Results from this size on are written past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int64_t kRowBlock = 16, kColumnBlock = 2048, kChunk = 8192;

GENCORE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GENCORE_INLINE int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// body(block) for all blocks, by this thread alone or shared out one by one; backwards, what was read last by the pass
// before, and is still in the cache, comes first.
template <class Body>
void for_each_block(int64_t blocks, bool shared, bool backwards, const Body& body) {
  const int64_t workers = shared ? num_threads() : 1;
  auto work = [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++)
      for (int64_t i = worker; i < blocks; i += workers) body(backwards ? blocks - 1 - i : i);
  };
  if (shared)
    parallel_for(0, workers, 1, work);
  else
    work(0, 1);
}

// A layer as the loops see it. Where inner is 1 a row has one element: rows and columns then change places.
template <class T, class C = compute_t<T>>
struct View {
  const SpectralNormLayer& layer;
  int64_t outer, rows, inner;
  C *row_vector, *column_vector;
  bool swapped, shared;

  explicit View(const SpectralNormLayer& l)
      : layer(l),
        outer(l.outer),
        rows(l.rows),
        inner(l.inner),
        row_vector(static_cast<C*>(l.u)),
        column_vector(static_cast<C*>(l.v)),
        swapped(l.inner == 1 && l.outer > 1),
        shared(l.numel() >= kLargeLayer) {
    if (!swapped) return;
    outer = 1, rows = l.outer, inner = l.rows;
    row_vector = static_cast<C*>(l.v), column_vector = static_cast<C*>(l.u);
  }
  const T* row(const void* data, int64_t a, int64_t r) const {
    return static_cast<const T*>(data) + (a * rows + r) * inner;
  }
  int64_t columns() const { return outer * inner; }
};

// --- products --------------------------------------------------------------------------------------------------------

// to[r] = sum over columns of W[r][column] column_vector[column].
template <class T, class C>
void multiply_by_columns(const View<T>& view, C* to, bool backwards) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  for_each_block(blocks_of(view.rows, kRowBlock), view.shared, backwards, [&](int64_t block) {
    const int64_t first = block * kRowBlock, count = least(kRowBlock, view.rows - first);
    V total[kRowBlock] = {};
    for (int64_t a = 0; a < view.outer; a++)
      for (int64_t r = 0; r < count; r++) {
        const T* weight = view.row(view.layer.weight, a, first + r);
        const C* x = view.column_vector + a * view.inner;
        V sum[4] = {};
        for_each_vector<lanes>(view.inner, [&](int64_t i, int64_t n, int slot)
                                               GENCORE_LAMBDA { sum[slot] += load(weight + i, n) * load(x + i, n); });
        total[r] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
    for (int64_t r = 0; r < count; r++) to[first + r] = static_cast<C>(horizontal_sum(total[r]));
  });
}

// to[column] = sum over rows of row_vector[r] W[r][column]; four rows at a time, `columns` of them from `first`.
template <class T, class C>
void multiply_columns(const View<T>& view, int64_t a, int64_t first, int64_t columns, C* to, bool backwards) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  for (int64_t i = 0; i < columns; i++) to[i] = 0;
  const int64_t groups = blocks_of(view.rows, 4);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t r = 4 * (backwards ? groups - 1 - g : g);
    const T* weight[4];
    V x[4];
    for (int64_t k = 0; k < 4; k++) {
      const int64_t row = least(r + k, view.rows - 1);
      weight[k] = view.row(view.layer.weight, a, row) + first;
      x[k] = broadcast<V>(r + k < view.rows ? view.row_vector[row] : C{0});
    }
    for_each_vector<lanes>(columns, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      const V lower = load(weight[0] + i, n) * x[0] + load(weight[1] + i, n) * x[1];
      const V upper = load(weight[2] + i, n) * x[2] + load(weight[3] + i, n) * x[3];
      store(to + i, load(to + i, n) + (lower + upper), n);
    });
  }
}

template <class T, class C>
void multiply_by_rows(const View<T>& view, C* to, bool backwards) {
  // Few, long strips keep the reading sequential; as many as a large machine has threads keep it busy.
  const int64_t strip =
      view.inner >= 64 * kColumnBlock ? kColumnBlock : least(kColumnBlock, blocks_of(view.inner, 64) * 16);
  const int64_t width = strip < 64 ? 64 : strip, strips = blocks_of(view.inner, width);
  for_each_block(view.outer * strips, view.shared, backwards, [&](int64_t block) {
    const int64_t a = block / strips, first = block % strips * width;
    multiply_columns(view, a, first, least(width, view.inner - first), to + a * view.inner + first, backwards);
  });
}

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

template <class T, class C = compute_t<T>>
void normalize_layer(const SpectralNormArgs& args, const SpectralNormLayer& layer, C* product) {
  const View<T> view(layer);
  const bool columns_first = args.v_first != view.swapped;
  bool backwards = false;
  double sigma = 0;
  // Without iterations one product gives sigma: the one that an iteration ends with.
  const int64_t turns = args.iterations > 0 ? 2 * args.iterations : 1;
  for (int64_t turn = 0; turn < turns; turn++) {
    const bool last = turn + 1 == turns, columns = (turns - 1 - turn) % 2 == 0 ? !columns_first : columns_first;
    C* vector = columns ? view.column_vector : view.row_vector;
    const int64_t count = columns ? view.columns() : view.rows;
    if (columns)
      multiply_by_rows(view, product, backwards);
    else
      multiply_by_columns(view, product, backwards);
    if (args.iterations > 0) normalize(product, count, args.eps, vector);
    if (last) sigma = dot(vector, product, count);
    backwards = !backwards;
  }
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

// The large layers one after another, by all threads; then the others, shared out by their sizes.
template <class C, class Body>
void for_each_layer(const SpectralNormLayer* layers, int64_t count, const Body& body) {
  int64_t most = 0, small = 0;
  for (int64_t i = 0; i < count; i++) {
    const SpectralNormLayer& l = layers[i];
    const int64_t needed = l.rows + l.columns() + blocks_of(l.numel(), kChunk);
    most = needed > most ? needed : most;
    small += l.numel() < kLargeLayer ? l.numel() : 0;
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
    for_each_layer<compute_t<scalar_t>>(args.layers, args.count, [&](const SpectralNormLayer& layer, auto* space) {
      normalize_layer<scalar_t>(args, layer, space);
    });
  });
}

void spectral_norm_backward(const SpectralNormBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, {
    for_each_layer<compute_t<scalar_t>>(args.layers, args.count, [&](const SpectralNormLayer& layer, auto* space) {
      differentiate_layer<scalar_t>(args, layer, space);
    });
  });
}

}  // namespace gencore::GENCORE_ISA
