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
// What one thread reads twice in a row: it stays in the second-level cache.
constexpr int64_t kCachedBytes = int64_t{512} << 10;
constexpr int64_t kMostParts = 64;

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

// A rectangle of a weight: columns are neighbours in memory, rows `stride` apart.
template <class T>
struct Tile {
  const T* data;
  int64_t stride, rows, columns;
};

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
  // Of slice `a`.
  Tile<T> tile(int64_t a, int64_t first_row, int64_t count, int64_t first_column, int64_t width) const {
    return {row(layer.weight, a, first_row) + first_column, inner, count, width};
  }
  int64_t columns() const { return outer * inner; }
};

// --- products --------------------------------------------------------------------------------------------------------

// total[r] += the products of row r with x, lane by lane; four rows at a time share what they load of x, and long rows
// are summed in runs.
template <class T, class C, class V = vector_t<C>>
GENCORE_INLINE void add_rows(const Tile<T>& tile, const C* x, V* total) {
  constexpr int lanes = Vector<C>::lanes;
  for (int64_t first = 0; first < tile.columns; first += kColumnBlock) {
    const int64_t columns = least(kColumnBlock, tile.columns - first);
    for (int64_t r = 0; r < tile.rows; r += 4) {
      const T* row[4];
      for (int64_t k = 0; k < 4; k++) row[k] = tile.data + least(r + k, tile.rows - 1) * tile.stride + first;
      V even[4] = {}, odd[4] = {};
      for_each_vector<lanes>(columns, [&](int64_t i, int64_t n, int slot) GENCORE_LAMBDA {
        const V value = load(x + first + i, n);
        for (int k = 0; k < 4; k++) (slot % 2 ? odd : even)[k] += load(row[k] + i, n) * value;
      });
      for (int64_t k = 0; k < least(4, tile.rows - r); k++) total[r + k] += even[k] + odd[k];
    }
  }
}

// to[column] += sum over the rows of x[r] W[r][column]; four rows at a time.
template <class T, class C>
GENCORE_INLINE void add_columns(const Tile<T>& tile, const C* x, C* to) {
  using V = vector_t<C>;
  constexpr int lanes = Vector<C>::lanes;
  for (int64_t r = 0; r < tile.rows; r += 4) {
    const T* row[4];
    V by[4];
    for (int64_t k = 0; k < 4; k++) {
      row[k] = tile.data + least(r + k, tile.rows - 1) * tile.stride;
      by[k] = broadcast<V>(r + k < tile.rows ? x[r + k] : C{0});
    }
    for_each_vector<lanes>(tile.columns, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      const V lower = load(row[0] + i, n) * by[0] + load(row[1] + i, n) * by[1];
      const V upper = load(row[2] + i, n) * by[2] + load(row[3] + i, n) * by[3];
      store(to + i, load(to + i, n) + (lower + upper), n);
    });
  }
}

template <class C>
void set_zero(C* to, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = 0;
}

// to[r] = sum over columns of W[r][column] column_vector[column].
template <class T, class C>
void multiply_by_columns(const View<T>& view, C* to, bool backwards) {
  using V = vector_t<C>;
  for_each_block(blocks_of(view.rows, kRowBlock), view.shared, backwards, [&](int64_t block) {
    const int64_t first = block * kRowBlock, count = least(kRowBlock, view.rows - first);
    V total[kRowBlock] = {};
    for (int64_t a = 0; a < view.outer; a++)
      add_rows(view.tile(a, first, count, 0, view.inner), view.column_vector + a * view.inner, total);
    for (int64_t r = 0; r < count; r++) to[first + r] = static_cast<C>(horizontal_sum(total[r]));
  });
}

// to[column] = sum over rows of row_vector[r] W[r][column].
template <class T, class C>
void multiply_by_rows(const View<T>& view, C* to, bool backwards) {
  // Few, long strips keep the reading sequential; as many as a large machine has threads keep it busy.
  const int64_t strip =
      view.inner >= 64 * kColumnBlock ? kColumnBlock : least(kColumnBlock, blocks_of(view.inner, 64) * 16);
  const int64_t width = strip < 64 ? 64 : strip, strips = blocks_of(view.inner, width);
  for_each_block(view.outer * strips, view.shared, backwards, [&](int64_t block) {
    const int64_t a = block / strips, first = block % strips * width, count = least(width, view.inner - first);
    C* part = to + a * view.inner + first;
    set_zero(part, count);
    add_columns(view.tile(a, 0, view.rows, first, count), view.row_vector, part);
  });
}

// Both products of an iteration whose rows come first, in one pass over the weight: a block of rows gives its part of
// W c and is still in the cache when it is multiplied by that, not yet divided by its length, for its part of W^T (W
// c). The blocks are dealt out to parts, each with sums of its own, whose number depends on the shape alone. Where
// columns come first, strips of columns could do the same; their short, scattered pieces of memory cost as much as the
// second reading that they spare.
template <class T, class C = compute_t<T>>
class BothProducts {
 public:
  explicit BothProducts(const View<T>& view) : view_(view) {
    width_ = kCachedBytes / (view.columns() * static_cast<int64_t>(sizeof(T)) + 1) / 4 * 4;
    width_ = width_ < 4 ? 4 : least(width_, kRowBlock);
    blocks_ = blocks_of(view.rows, width_);
    // Few enough that their sums are small beside the weight; none where even one is not.
    parts_ = least(view.shared ? kMostParts : 1, least(blocks_, view.rows / 8));
  }

  bool possible() const { return parts_ > 0; }
  int64_t space() const { return parts_ * view_.columns(); }

  // row_product = W c, column_product = W^T row_product.
  void run(C* row_product, C* column_product, C* sums, bool backwards) const {
    const int64_t columns = view_.columns();
    for_each_block(parts_, view_.shared, backwards, [&](int64_t part) {
      C* own = sums + part * columns;
      set_zero(own, columns);
      for (int64_t block = part * blocks_ / parts_; block < (part + 1) * blocks_ / parts_; block++) {
        const int64_t first = block * width_, count = least(width_, view_.rows - first);
        vector_t<C> total[kRowBlock] = {};
        for (int64_t a = 0; a < view_.outer; a++)
          add_rows(view_.tile(a, first, count, 0, view_.inner), view_.column_vector + a * view_.inner, total);
        for (int64_t r = 0; r < count; r++) row_product[first + r] = static_cast<C>(horizontal_sum(total[r]));
        for (int64_t a = 0; a < view_.outer; a++)
          add_columns(view_.tile(a, first, count, 0, view_.inner), row_product + first, own + a * view_.inner);
      }
    });
    C ones[kMostParts];
    for (C& one : ones) one = 1;
    for_each_block(blocks_of(columns, kColumnBlock), view_.shared, false, [&](int64_t block) {
      const int64_t first = block * kColumnBlock, count = least(kColumnBlock, columns - first);
      set_zero(column_product + first, count);
      add_columns(Tile<C>{sums + first, columns, parts_, count}, ones, column_product + first);
    });
  }

 private:
  const View<T>& view_;
  int64_t width_, blocks_, parts_;
};

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

template <class T, class C = compute_t<T>>
void normalize_layer(const SpectralNormArgs& args, const SpectralNormLayer& layer, C* space) {
  const View<T> view(layer);
  const bool columns_first = args.v_first != view.swapped;
  struct Side {
    bool columns;
    C *product, *vector;
    int64_t count;
  };
  C *row_product = space, *column_product = row_product + view.rows, *rest = column_product + view.columns();
  Side first{false, row_product, view.row_vector, view.rows};
  Side second{true, column_product, view.column_vector, view.columns()};
  if (columns_first) {
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
  const BothProducts<T> both(view);
  for (int64_t i = 0; i < args.iterations; i++) {
    double length = 0;
    if (!columns_first && both.possible()) {
      both.run(row_product, column_product, rest, backwards);
      backwards = !backwards;
      length = __builtin_sqrt(dot(first.product, first.product, first.count));
    }
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
          return view.rows + view.columns() + BothProducts<scalar_t>(view).space();
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
