// What batch norm's forward and backward share: how the elements of a channel are walked, and how sums are merged.
#pragma once

#include <type_traits>

#include "cpu/batch_norm_act.h"
#include "cpu/moments.h"
#include "gencore/activation.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

// A channel whose tensors are no larger than this is read once from memory: what its second pass reads is still in L2.
constexpr int64_t kResidentBytes = 640 << 10;
// Outputs at least this large are written past the caches.
constexpr int64_t kStreamBytes = 16 << 20;

// body(offset, count) for the runs of consecutive elements that make [begin, end) of a channel (inner > 1).
template <class Body>
GENCORE_INLINE void for_each_run(const BatchNormShape& shape, int64_t channel, int64_t begin, int64_t end,
                                 const Body& body) {
  int64_t n = begin / shape.inner, i = begin % shape.inner;
  while (begin < end) {
    const int64_t left = end - begin, run = shape.inner - i;
    const int64_t count = run < left ? run : left;
    body((n * shape.channels + channel) * shape.inner + i, count);
    begin += count;
    i = 0;
    n++;
  }
}

// Rows that are walked together, all column tiles of them before the next: wide rows are then read about as they lie.
constexpr int64_t kRows = 16;

// body<vectors>(column, n, first, last) for the column tiles of rows [begin, end) (inner == 1), kRows rows at a time,
// of up to `wide` vectors, whose sums stay in registers.
template <int lanes, int wide = 8, class Body>
GENCORE_INLINE void for_each_tile_of_rows(int64_t channels, int64_t begin, int64_t end, const Body& body) {
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t last = first + kRows < end ? first + kRows : end;
    for_each_column_tile<lanes, wide>(channels, [&]<int vectors>(int64_t column, int64_t n) GENCORE_LAMBDA {
      body.template operator()<vectors>(column, n, first, last);
    });
  }
}

// One number a column, for the vectors of a tile.
template <int vectors, class C, class V>
GENCORE_INLINE void load_tile(const C* from, int64_t n, V (&to)[vectors]) {
  for (int j = 0; j < vectors; j++) to[j] = load(from + j * Vector<C>::lanes, n);
}
template <int vectors, class C, class V>
GENCORE_INLINE void store_tile(C* to, int64_t n, const V (&from)[vectors]) {
  for (int j = 0; j < vectors; j++) store(to + j * Vector<C>::lanes, from[j], n);
}

inline int64_t chunk_sample(const BatchNormWalk& walk, int64_t chunk) { return chunk / walk.sample_chunks(); }
inline int64_t chunk_begin(const BatchNormWalk& walk, int64_t chunk) {
  const int64_t sample = chunk_sample(walk, chunk);
  return sample * walk.sample_size() + (chunk - sample * walk.sample_chunks()) * walk.chunk_size();
}
inline int64_t chunk_end(const BatchNormWalk& walk, int64_t chunk) {
  const int64_t end = chunk_begin(walk, chunk) + walk.chunk_size();
  const int64_t sample_end = (chunk_sample(walk, chunk) + 1) * walk.sample_size();
  return end < sample_end ? end : sample_end;
}

// Tasks for loops over the chunks of all channels: (channel, chunk) pairs, or chunks of rows.
inline int64_t chunk_tasks(const BatchNormWalk& walk) {
  return walk.chunks() * (walk.planar() ? walk.shape.channels : 1);
}
inline int64_t chunk_grain(const BatchNormWalk& walk) {
  return kGrain * chunk_tasks(walk) / (walk.shape.numel() + 1) + 1;
}

// body(one instance's arguments) for all of them: in parallel, unless there is one alone.
template <class Args, class Advance, class Body>
inline void for_each_instance(const Args& args, const Advance& advance, const Body& body) {
  parallel_for(0, args.instances, kGrain / (args.shape.numel() + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Args one = args;
      advance(one, i);
      body(one);
    }
  });
}

// The pointer to instance `index`, each having `count` elements of `size` bytes; null stays null.
template <class P>
inline P* at_instance(P* pointer, int64_t index, int64_t count, int64_t size) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return pointer ? static_cast<Byte*>(pointer) + index * count * size : pointer;
}

// Writes one value a channel into each of the channel's columns.
template <class C>
GENCORE_INLINE void fill_columns(C* columns, int64_t channel, int64_t fold, C value) {
  for (int64_t i = channel * fold; i < (channel + 1) * fold; i++) columns[i] = value;
}

template <class C>
inline double channel_invstd(const void* var, double eps, int64_t channel) {
  return 1.0 / __builtin_sqrt(static_cast<double>(static_cast<const C*>(var)[channel]) + eps);
}

// The constants of one channel, for every sample: the mean, weight / sqrt(var + eps), and the bias.
template <class C, class Args, class Columns>
inline void set_columns(const Args& args, const Columns& columns, int64_t channel, int64_t fold) {
  const double invstd = channel_invstd<C>(args.var, args.eps, channel);
  const C* weight = static_cast<const C*>(args.weight);
  const C* bias = static_cast<const C*>(args.bias);
  fill_columns(columns.mean, channel, fold, static_cast<const C*>(args.mean)[channel]);
  for (int64_t n = 0; n < args.samples; n++) {
    const int64_t index = n * args.shape.channels + channel;
    fill_columns(columns.scale, index, fold, static_cast<C>(weight ? weight[index] * invstd : invstd));
    fill_columns(columns.bias, index, fold, bias ? bias[index] : C{0});
  }
}
template <class C, class Args, class Columns>
inline void set_all_columns(const Args& args, const Columns& columns, const BatchNormWalk& walk) {
  for_each_channel_block(walk.channels(), args.samples * walk.fold, [&](int64_t first, int64_t block) {
    for (int64_t c = first; c < first + block; c++) set_columns<C>(args, columns, c, walk.fold);
  });
}

}  // namespace gencore::GENCORE_ISA
