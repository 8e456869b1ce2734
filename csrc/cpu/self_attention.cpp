#include "cpu/self_attention.h"

#include <limits>

#include "cpu/attention_tile.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int64_t kKeyBlock = 64;
// A peak may lag behind the largest score by this before the sums are rescaled: e^6 is far from overflow.
constexpr int kLag = 6;
// Blocks of keys that meet in one sum of weighted values before that goes into a sum of sums, as in the backward.
constexpr int64_t kRunBlocks = 6;

// Keys and values of one batch entry in panels, and the running state of one block of queries.
template <class C>
struct Workspace {
  C* keys;     // per block of keys: K^T, [width][kKeyBlock]
  C* values;   // per block of keys: [kKeyBlock][value_width]
  C* queries;  // [kQueryBlock][width], scaled
  C* weights;  // [kQueryBlock][kKeyBlock]: scores, then exp(score - peak)
  C* sums;     // [kQueryBlock][value_width, padded]: the weighted values of a run of blocks
  C* results;  // the same of all runs before
  C* totals;   // [kQueryBlock][lanes]: the weights' sums, lane by lane
  C* peaks;    // [kQueryBlock]

  Workspace(const SelfAttentionShape& shape, Arena& arena) {
    const int64_t blocks = (shape.keys + kKeyBlock - 1) / kKeyBlock;
    keys = arena.take<C>(blocks * shape.width * kKeyBlock);
    values = arena.take<C>(blocks * kKeyBlock * padded_columns<C>(shape.value_width));
    queries = arena.take<C>(kQueryBlock * shape.width);
    weights = arena.take<C>(kQueryBlock * kKeyBlock);
    sums = arena.take<C>(kQueryBlock * padded_columns<C>(shape.value_width));
    results = arena.take<C>(kQueryBlock * padded_columns<C>(shape.value_width));
    totals = arena.take<C>(kQueryBlock * Tile<C>::lanes);
    peaks = arena.take<C>(kQueryBlock);
  }
};

template <class T, class C>
void pack_keys_and_values(const SelfAttentionArgs& args, int64_t batch, const Workspace<C>& work) {
  const SelfAttentionShape& shape = args.shape;
  const auto key = of_batch<const T>(args.key, batch), value = of_batch<const T>(args.value, batch);
  const int64_t value_stride = padded_columns<C>(shape.value_width);
  for (int64_t first = 0; first < shape.keys; first += kKeyBlock) {
    const int64_t count = least(kKeyBlock, shape.keys - first);
    // K^T: its columns are the keys of this block.
    const Strided<const T> part{key.at(first), key.row_stride, key.column_stride};
    pack_panels(part.transposed(), 0, shape.width, shape.width, count, padded_columns<C>(count),
                work.keys + first * shape.width);
    pack_panels(value, first, count, kKeyBlock, shape.value_width, value_stride, work.values + first * value_stride);
  }
}

// Scores of one block to exp(score - peak), which add to the totals; where a peak rises, what was summed shrinks.
template <class C>
void soften(const Workspace<C>& work, int64_t value_stride) {
  using V = typename Tile<C>::V;
  constexpr int lanes = Tile<C>::lanes, vectors = kKeyBlock / lanes;
  for (int64_t r = 0; r < kQueryBlock; r++) {
    C* row = work.weights + r * kKeyBlock;
    C* total = work.totals + r * lanes;
    V highest = load_vector<V>(row);
    for (int j = 1; j < vectors; j++) highest = maximum(highest, load_vector<V>(row + j * lanes));
    const C peak = largest_lane(highest);
    if (!(peak <= work.peaks[r] + kLag)) {
      const C shrink = ::exp(work.peaks[r] - peak);
      work.peaks[r] = peak;
      for (int i = 0; i < lanes; i++) total[i] *= shrink;
      scale_all(work.sums + r * value_stride, value_stride, shrink);
      scale_all(work.results + r * value_stride, value_stride, shrink);
    }
    const V subtracted = splat<V>(work.peaks[r]);
    V sum = load_vector<V>(total);
    for (int j = 0; j < vectors; j++) {
      const V weight = exponential2((load_vector<V>(row + j * lanes) - subtracted) * static_cast<C>(kLog2E));
      sum += weight;
      store_vector(row + j * lanes, weight);
    }
    store_vector(total, sum);
  }
}

template <class T, class C>
void query_block(const SelfAttentionArgs& args, int64_t batch, int64_t first, const Workspace<C>& work) {
  const SelfAttentionShape& shape = args.shape;
  const int64_t rows = least(kQueryBlock, shape.queries - first), width = shape.width;
  const int64_t value_stride = padded_columns<C>(shape.value_width);
  fill(work.queries, kQueryBlock * width, C{0});
  read_block(of_batch<const T>(args.query, batch), first, rows, width, work.queries, width);
  scale_all(work.queries, rows * width, static_cast<C>(args.scale));
  fill(work.sums, kQueryBlock * value_stride, C{0});
  fill(work.results, kQueryBlock * value_stride, C{0});
  fill(work.totals, kQueryBlock * Tile<C>::lanes, C{0});
  fill(work.peaks, kQueryBlock, std::numeric_limits<C>::lowest());

  const C *query_rows[kQueryBlock], *weight_rows[kQueryBlock];
  point_at_rows<C>(query_rows, kQueryBlock, work.queries, width);
  point_at_rows<C>(weight_rows, kQueryBlock, work.weights, kKeyBlock);
  for (int64_t key = 0, in_run = 0; key < shape.keys; key += kKeyBlock) {
    const int64_t count = least(kKeyBlock, shape.keys - key);
    multiply<C>(query_rows, kQueryBlock, width, work.keys + key * width, padded_columns<C>(count), work.weights,
                kKeyBlock, false);
    for (int64_t r = 0; count < kKeyBlock && r < kQueryBlock; r++)
      fill(work.weights + r * kKeyBlock + count, kKeyBlock - count, -std::numeric_limits<C>::infinity());
    soften(work, value_stride);
    multiply<C>(weight_rows, kQueryBlock, kKeyBlock, work.values + key * value_stride, value_stride, work.sums,
                value_stride, in_run > 0);
    if (++in_run == kRunBlocks || key + kKeyBlock >= shape.keys) {
      add_all(work.results, kQueryBlock * value_stride, work.sums);
      in_run = 0;
    }
  }

  const int64_t query = batch * shape.queries + first;
  C *peaks = static_cast<C*>(args.peaks) + query, *inverse_totals = static_cast<C*>(args.inverse_totals) + query;
  for (int64_t r = 0; r < rows; r++) {
    C total = 0;
    for (int i = 0; i < Tile<C>::lanes; i++) total += work.totals[r * Tile<C>::lanes + i];
    peaks[r] = work.peaks[r];
    inverse_totals[r] = shape.keys > 0 ? 1 / total : C{0};  // without any keys the result is 0
    scale_all(work.results + r * value_stride, shape.value_width, inverse_totals[r]);
  }
  write_block(work.results, value_stride, of_batch<T>(args.out, batch), first, rows, shape.value_width);
}

template <class T, class C = compute_t<T>>
void forward(const SelfAttentionArgs& args) {
  const SelfAttentionShape& shape = args.shape;
  const int64_t blocks = (shape.queries + kQueryBlock - 1) / kQueryBlock;
  parallel_for(0, shape.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    Arena size;
    Workspace<C>{shape, size};
    Arena arena{static_cast<char*>(scratch(Scratch::worker, size.used))};
    const Workspace<C> work{shape, arena};
    int64_t packed = -1;
    for (int64_t task = begin; task < end; task++) {
      const int64_t batch = task / blocks;
      if (batch != packed) pack_keys_and_values<T>(args, batch, work);
      packed = batch;
      query_block<T>(args, batch, task % blocks * kQueryBlock, work);
    }
  });
}

}  // namespace

void self_attention(const SelfAttentionArgs& args) { GENCORE_DISPATCH_DTYPE(args.dtype, forward<scalar_t>(args)); }

}  // namespace gencore::GENCORE_ISA
