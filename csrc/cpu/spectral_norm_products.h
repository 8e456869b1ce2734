// The products of spectral norm: a layer's weight as a matrix, times a vector from either side, or both in one pass.
#pragma once

#include "cpu/spectral_norm.h"
#include "gencore/parallel.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int64_t kLargeLayer = int64_t{1} << 18;
// A weight from this size on outgrows the caches: results are written past them.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int64_t kRowBlock = 16, kColumnBlock = 2048, kChunk = 8192;
// What one thread reads twice in a row: it stays in the second-level cache, or in its share of the last.
constexpr int64_t kCachedBytes = int64_t{512} << 10, kStripBytes = int64_t{4} << 20;
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

// Adds up what each part has summed: to[i] = sum over the parts of sums[part][i].
template <class C>
void add_parts(C* sums, int64_t parts, int64_t count, bool shared, C* to) {
  C ones[kMostParts];
  for (C& one : ones) one = 1;
  for_each_block(blocks_of(count, kColumnBlock), shared, false, [&](int64_t block) {
    const int64_t first = block * kColumnBlock, width = least(kColumnBlock, count - first);
    set_zero(to + first, width);
    add_columns(Tile<C>{sums + first, count, parts, width}, ones, to + first);
  });
}

// Both products of an iteration, in one pass over the weight. Where rows come first, a block of rows gives its part of
// W c and is still in the cache when it is multiplied by that, not yet divided by its length, for its part of W^T (W
// c). The blocks are dealt out to parts, each with sums of its own, whose number depends on the shape alone.
template <class T, class C = compute_t<T>>
class RowsFirst {
 public:
  explicit RowsFirst(const View<T>& view) : view_(view) {
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
    add_parts(sums, parts_, columns, view_.shared, column_product);
  }

 private:
  const View<T>& view_;
  int64_t width_, blocks_, parts_;
};

// The same where columns come first, by strips of them; of weights that outgrow the caches, for a strip's rows are
// short and scattered pieces of memory unless it is a good part of the last cache.
template <class T, class C = compute_t<T>>
class ColumnsFirst {
 public:
  explicit ColumnsFirst(const View<T>& view) : view_(view) {
    width_ = kStripBytes / (view.rows * static_cast<int64_t>(sizeof(T)) + 1) / kStripUnit * kStripUnit;
    if (width_ == 0 || view.layer.numel() * static_cast<int64_t>(sizeof(T)) < kStreamBytes) return;
    strips_ = blocks_of(view.inner, width_);
    parts_ = least(kMostParts, view.outer * strips_);
  }

  bool possible() const { return parts_ > 0; }
  int64_t space() const { return parts_ * view_.rows; }

  // column_product = W^T r, row_product = W column_product.
  void run(C* column_product, C* row_product, C* sums, bool backwards) const {
    const int64_t rows = view_.rows, all = view_.outer * strips_;
    for_each_block(parts_, view_.shared, backwards, [&](int64_t part) {
      C* own = sums + part * rows;
      set_zero(own, rows);
      for (int64_t strip = part * all / parts_; strip < (part + 1) * all / parts_; strip++) {
        const int64_t a = strip / strips_, first = strip % strips_ * width_;
        const int64_t count = least(width_, view_.inner - first);
        C* product = column_product + a * view_.inner + first;
        set_zero(product, count);
        add_columns(view_.tile(a, 0, rows, first, count), view_.row_vector, product);
        for (int64_t r = 0; r < rows; r += kRowBlock) {
          vector_t<C> total[kRowBlock] = {};
          const int64_t height = least(kRowBlock, rows - r);
          add_rows(view_.tile(a, r, height, first, count), product, total);
          for (int64_t i = 0; i < height; i++) own[r + i] += static_cast<C>(horizontal_sum(total[i]));
        }
      }
    });
    add_parts(sums, parts_, rows, view_.shared, row_product);
  }

 private:
  static constexpr int64_t kStripUnit = 64;  // columns
  const View<T>& view_;
  int64_t width_, strips_ = 0, parts_ = 0;
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
