// With P = softmax(scale Q K^T), D = dO V^T, delta = rowsum(dO O) and S = P (D - delta):
// dV = P^T dO, dK = scale S^T Q, dQ = scale S K.
//
// The rows of S add up to 0, but for the rounding of delta, which is as large as D while S may be small: dQ would be
// off by rowsum(S) P K. That is taken off again: dQ = scale (S K - rowsum(S) P K).
//
// A block of keys meets the blocks of queries one after another, with the keys in the rows of every product and the
// queries in the vectors, so that nothing is transposed on the way: P^T and S^T are the left factors of dV and dK, and
// S^T and P^T are the right factors of K^T S^T and K^T P^T. The keys of a batch entry are cut into parts, a task each,
// by the shape alone; every part has its own of these two, and they are added up in order.
#include <numeric>

#include "cpu/attention_tile.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int64_t kKeyBlock = 48;
// Tasks that keep a large machine busy, and the fewest blocks of keys that pay for packing the queries.
constexpr int64_t kTasks = 64, kFewestBlocks = 4;
// Blocks of queries that meet in one sum of dK and dV before that goes into a sum of sums: rounding errors then grow
// with the root of the longer of the two, not with that of all queries.
constexpr int64_t kRunBlocks = 6;

// Rows of K^T: whole tiles of each height that a block of queries is covered with.
template <class C>
constexpr int64_t transposed_rows(int64_t width) {
  constexpr int lanes = Tile<C>::lanes, widest = kMaxVectors * lanes, rest = kQueryBlock % widest / lanes;
  constexpr int first = kQueryBlock >= widest ? tile_rows(kMaxVectors) : 1, last = rest ? tile_rows(rest) : 1;
  return round_up(width, std::lcm(first, last));
}

struct Parts {
  int64_t query_blocks, key_blocks, count;
  explicit Parts(const SelfAttentionShape& shape)
      : query_blocks((shape.queries + kQueryBlock - 1) / kQueryBlock),
        key_blocks((shape.keys + kKeyBlock - 1) / kKeyBlock) {
    count = least(kTasks / shape.batch, key_blocks / kFewestBlocks);
    if (count < 1) count = 1;
  }
  int64_t begin(int64_t part) const { return part * key_blocks / count; }
};

template <class C>
struct Workspace {
  // Of every block of queries.
  C* queries_t;  // scaled Q^T, [width][kQueryBlock]
  C* queries;    // [kQueryBlock][width]
  C* grads_t;    // dO^T, [value_width][kQueryBlock]
  C* grads;      // [kQueryBlock][value_width]
  C *peaks, *inverse_totals, *deltas;
  // Of one block of keys.
  C* keys;                     // [kKeyBlock][width]
  C* keys_t;                   // [width][kKeyBlock]
  C* values;                   // [kKeyBlock][value_width]
  C* weights;                  // P^T, [kKeyBlock][kQueryBlock]
  C* slopes;                   // D^T, then S^T
  C* panels;                   // P^T or S^T in panels, where they are narrower than a block
  C *grad_keys, *grad_values;  // of a run of blocks of queries
  C *total_keys, *total_values;
  C *block, *other;  // [kQueryBlock][the larger width] on the way into panels

  Workspace(const SelfAttentionShape& shape, Arena& arena) {
    const int64_t queries_padded = Parts(shape).query_blocks * kQueryBlock;
    const int64_t width = padded_columns<C>(shape.width), value_width = padded_columns<C>(shape.value_width);
    queries_t = arena.take<C>(queries_padded * shape.width);
    queries = arena.take<C>(queries_padded * width);
    grads_t = arena.take<C>(queries_padded * shape.value_width);
    grads = arena.take<C>(queries_padded * value_width);
    peaks = arena.take<C>(queries_padded);
    inverse_totals = arena.take<C>(queries_padded);
    deltas = arena.take<C>(queries_padded);
    keys = arena.take<C>(kKeyBlock * shape.width);
    keys_t = arena.take<C>(kKeyBlock * transposed_rows<C>(shape.width));
    values = arena.take<C>(kKeyBlock * shape.value_width);
    weights = arena.take<C>(kKeyBlock * kQueryBlock);
    slopes = arena.take<C>(kKeyBlock * kQueryBlock);
    panels = arena.take<C>(kKeyBlock * kQueryBlock);
    grad_keys = arena.take<C>(kKeyBlock * width);
    grad_values = arena.take<C>(kKeyBlock * value_width);
    total_keys = arena.take<C>(kKeyBlock * width);
    total_values = arena.take<C>(kKeyBlock * value_width);
    block = arena.take<C>(kQueryBlock * (width > value_width ? width : value_width));
    other = arena.take<C>(kQueryBlock * (width > value_width ? width : value_width));
  }
};

// to[r] = <a[r], b[r]> over the rows of a block, added up in the order of the tiles: where one key has all the weight
// the result is that key's D to the bit, and S is 0.
template <class C>
void row_products(const C* a, const C* b, int64_t width, int64_t stride, C* to) {
  constexpr int64_t together = 8;
  for (int64_t r = 0; r < kQueryBlock; r += together) {
    C total[together] = {};
    for (int64_t first = 0; first < width; first += kAttentionRun) {
      C sum[together] = {};
      for (int64_t c = first; c < least(width, first + kAttentionRun); c++)
        for (int64_t k = 0; k < together; k++)
          sum[k] = multiply_add(a[(r + k) * stride + c], b[(r + k) * stride + c], sum[k]);
      for (int64_t k = 0; k < together; k++) total[k] += sum[k];
    }
    for (int64_t k = 0; k < together; k++) to[r + k] = total[k];
  }
}

template <class T, class C>
void pack_queries(const SelfAttentionBackwardArgs& args, int64_t batch, const Workspace<C>& work) {
  const SelfAttentionShape& shape = args.shape;
  const int64_t width = padded_columns<C>(shape.width), value_width = padded_columns<C>(shape.value_width);
  const C* peaks = static_cast<const C*>(args.peaks) + batch * shape.queries;
  const C* inverse_totals = static_cast<const C*>(args.inverse_totals) + batch * shape.queries;
  for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
    const int64_t count = least(kQueryBlock, shape.queries - first);
    const Strided<const C> grads{work.block, value_width, 1}, queries{work.block, width, 1};
    fill(work.block, kQueryBlock * value_width, C{0});
    fill(work.other, kQueryBlock * value_width, C{0});
    read_block(of_batch<const T>(args.grad_out, batch), first, count, shape.value_width, work.block, value_width);
    read_block(of_batch<const T>(args.out, batch), first, count, shape.value_width, work.other, value_width);
    row_products(work.block, work.other, shape.value_width, value_width, work.deltas + first);
    for (int64_t i = 0; i < kQueryBlock; i++) {
      // Past the last query every weight is 0.
      work.peaks[first + i] = i < count ? peaks[first + i] : C{0};
      work.inverse_totals[first + i] = i < count ? inverse_totals[first + i] : C{0};
    }
    pack_panels(grads, 0, count, kQueryBlock, shape.value_width, value_width, work.grads + first * value_width);
    pack_panels(grads.transposed(), 0, shape.value_width, shape.value_width, count, kQueryBlock,
                work.grads_t + first * shape.value_width);
    read_block(of_batch<const T>(args.query, batch), first, count, shape.width, work.block, width);
    pack_panels(queries, 0, count, kQueryBlock, shape.width, width, work.queries + first * width);
    C* transposed = work.queries_t + first * shape.width;
    pack_panels(queries.transposed(), 0, shape.width, shape.width, count, kQueryBlock, transposed);
    scale_all(transposed, shape.width * kQueryBlock, static_cast<C>(args.scale));
  }
}

template <class T, class C>
void read_keys(const SelfAttentionBackwardArgs& args, int64_t batch, int64_t first, int64_t count,
               const Workspace<C>& work) {
  const SelfAttentionShape& shape = args.shape;
  fill(work.keys, kKeyBlock * shape.width, C{0});
  fill(work.keys_t, kKeyBlock * transposed_rows<C>(shape.width), C{0});
  fill(work.values, kKeyBlock * shape.value_width, C{0});
  fill(work.total_keys, kKeyBlock * padded_columns<C>(shape.width), C{0});
  fill(work.total_values, kKeyBlock * padded_columns<C>(shape.value_width), C{0});
  read_block(of_batch<const T>(args.key, batch), first, count, shape.width, work.keys, shape.width);
  read_block(of_batch<const T>(args.value, batch), first, count, shape.value_width, work.values, shape.value_width);
  for (int64_t k = 0; k < count; k++)
    for (int64_t c = 0; c < shape.width; c++) work.keys_t[c * kKeyBlock + k] = work.keys[k * shape.width + c];
}

// What a part of the keys adds for one block of queries: K^T S^T and K^T P^T, and below them rowsum(S) and the keys'
// own.
template <class C>
struct QueryPart {
  C *slopes, *weights, *row_sums;
  static int64_t size(int64_t rows) { return (2 * rows + 1) * kQueryBlock; }
  QueryPart(C* data, int64_t rows)
      : slopes(data), weights(data + rows * kQueryBlock), row_sums(data + 2 * rows * kQueryBlock) {}
};

// Scores and D^T to P^T and S^T; row_sums gets or, to accumulate, has added what S has in each query's row.
template <class C>
void differentiate_softmax(const Workspace<C>& work, int64_t first, int64_t keys, bool accumulate, C* row_sums) {
  using V = typename Tile<C>::V;
  constexpr int lanes = Tile<C>::lanes;
  for (int64_t j = 0; j < kQueryBlock; j += lanes) {
    const V peak = load_vector<V>(work.peaks + first + j), delta = load_vector<V>(work.deltas + first + j);
    const V inverse_total = load_vector<V>(work.inverse_totals + first + j);
    V sum = accumulate ? load_vector<V>(row_sums + j) : V{};
    for (int64_t k = 0; k < keys; k++) {
      C *weight = work.weights + k * kQueryBlock + j, *slope = work.slopes + k * kQueryBlock + j;
      const V p = exponential2((load_vector<V>(weight) - peak) * static_cast<C>(kLog2E)) * inverse_total;
      const V s = p * (load_vector<V>(slope) - delta);
      store_vector(weight, p);
      store_vector(slope, s);
      sum += s;
    }
    store_vector(row_sums + j, sum);
  }
  fill(work.weights + keys * kQueryBlock, (kKeyBlock - keys) * kQueryBlock, C{0});
  fill(work.slopes + keys * kQueryBlock, (kKeyBlock - keys) * kQueryBlock, C{0});
}

// to (+)= K^T matrix, for P^T or S^T.
template <class C>
void multiply_by_keys(const Workspace<C>& work, int64_t rows, const C* matrix, C* to, bool accumulate) {
  const C* panels = matrix;
  if constexpr (kQueryBlock > kMaxVectors * Tile<C>::lanes) {
    pack_panels(Strided<const C>{matrix, kQueryBlock, 1}, 0, kKeyBlock, kKeyBlock, kQueryBlock, kQueryBlock,
                work.panels);
    panels = work.panels;
  }
  constexpr int64_t most = 24;  // rows at a time: their pointers stand on the stack
  for (int64_t c = 0; c < rows; c += most) {
    const C* key_rows[most];
    point_at_rows<C>(key_rows, most, work.keys_t + c * kKeyBlock, kKeyBlock);
    multiply<C>(key_rows, least(most, rows - c), kKeyBlock, panels, kQueryBlock, to + c * kQueryBlock, kQueryBlock,
                accumulate);
  }
}

// One block of keys against all queries; parts: a QueryPart for each block of queries.
template <class T, class C>
void key_block(const SelfAttentionBackwardArgs& args, int64_t batch, int64_t first, bool accumulate,
               const Workspace<C>& work, C* parts) {
  const SelfAttentionShape& shape = args.shape;
  const int64_t width = padded_columns<C>(shape.width), value_width = padded_columns<C>(shape.value_width);
  const int64_t rows = transposed_rows<C>(shape.width), count = least(kKeyBlock, shape.keys - first);
  read_keys<T>(args, batch, first, count, work);
  const C *key_rows[kKeyBlock], *value_rows[kKeyBlock], *weight_rows[kKeyBlock], *slope_rows[kKeyBlock];
  point_at_rows<C>(key_rows, kKeyBlock, work.keys, shape.width);
  point_at_rows<C>(value_rows, kKeyBlock, work.values, shape.value_width);
  point_at_rows<C>(weight_rows, kKeyBlock, work.weights, kQueryBlock);
  point_at_rows<C>(slope_rows, kKeyBlock, work.slopes, kQueryBlock);
  for (int64_t query = 0, in_run = 0; query < shape.queries; query += kQueryBlock) {
    multiply<C>(key_rows, kKeyBlock, shape.width, work.queries_t + query * shape.width, kQueryBlock, work.weights,
                kQueryBlock, false);
    multiply<C>(value_rows, kKeyBlock, shape.value_width, work.grads_t + query * shape.value_width, kQueryBlock,
                work.slopes, kQueryBlock, false);
    const QueryPart<C> part(parts + query / kQueryBlock * QueryPart<C>::size(rows), rows);
    differentiate_softmax(work, query, count, accumulate, part.row_sums);
    multiply<C>(weight_rows, kKeyBlock, kQueryBlock, work.grads + query * value_width, value_width, work.grad_values,
                value_width, in_run > 0);
    multiply<C>(slope_rows, kKeyBlock, kQueryBlock, work.queries + query * width, width, work.grad_keys, width,
                in_run > 0);
    if (++in_run == kRunBlocks || query + kQueryBlock >= shape.queries) {
      add_all(work.total_keys, kKeyBlock * width, work.grad_keys);
      add_all(work.total_values, kKeyBlock * value_width, work.grad_values);
      in_run = 0;
    }
    multiply_by_keys(work, rows, work.slopes, part.slopes, accumulate);
    multiply_by_keys(work, rows, work.weights, part.weights, accumulate);
  }
  scale_all(work.total_keys, kKeyBlock * width, static_cast<C>(args.scale));
  write_block(work.total_keys, width, of_batch<T>(args.grad_key, batch), first, count, shape.width);
  write_block(work.total_values, value_width, of_batch<T>(args.grad_value, batch), first, count, shape.value_width);
}

// dQ from all parts.
template <class T, class C>
void add_parts(const SelfAttentionBackwardArgs& args, const Parts& parts, C* partial) {
  const SelfAttentionShape& shape = args.shape;
  const int64_t rows = transposed_rows<C>(shape.width), block = QueryPart<C>::size(rows);
  parallel_for(0, shape.batch * parts.query_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t batch = task / parts.query_blocks, query = task % parts.query_blocks;
      C* sum = partial + (batch * parts.count * parts.query_blocks + query) * block;
      for (int64_t part = 1; part < parts.count; part++) add_all(sum, block, sum + part * parts.query_blocks * block);
      const QueryPart<C> all(sum, rows);
      for (int64_t i = 0; i < rows * kQueryBlock; i++)
        all.slopes[i] = (all.slopes[i] - all.row_sums[i % kQueryBlock] * all.weights[i]) * static_cast<C>(args.scale);
      const int64_t first = query * kQueryBlock, count = least(kQueryBlock, shape.queries - first);
      const Strided<T> to = of_batch<T>(args.grad_query, batch);
      const Strided<T> there{to.at(first), to.row_stride, to.column_stride};
      write_block(all.slopes, kQueryBlock, there.transposed(), 0, shape.width, count);
    }
  });
}

template <class T, class C = compute_t<T>>
void backward(const SelfAttentionBackwardArgs& args) {
  const SelfAttentionShape& shape = args.shape;
  const Parts parts(shape);
  const int64_t partial_size = parts.query_blocks * QueryPart<C>::size(transposed_rows<C>(shape.width));
  C* partial = static_cast<C*>(scratch(Scratch::shared, shape.batch * parts.count * partial_size * sizeof(C)));
  parallel_for(0, shape.batch * parts.count, 1, [&](int64_t begin, int64_t end) {
    Arena size;
    Workspace<C>{shape, size};
    Arena arena{static_cast<char*>(scratch(Scratch::worker, size.used))};
    const Workspace<C> work{shape, arena};
    int64_t packed = -1;
    for (int64_t task = begin; task < end; task++) {
      const int64_t batch = task / parts.count, part = task % parts.count;
      if (batch != packed) pack_queries<T>(args, batch, work);
      packed = batch;
      for (int64_t block = parts.begin(part); block < parts.begin(part + 1); block++)
        key_block<T>(args, batch, block * kKeyBlock, block > parts.begin(part), work, partial + task * partial_size);
    }
  });
  add_parts<T>(args, parts, partial);
}

}  // namespace

void self_attention_backward(const SelfAttentionBackwardArgs& args) {
  GENCORE_DISPATCH_DTYPE(args.dtype, backward<scalar_t>(args));
}

}  // namespace gencore::GENCORE_ISA
