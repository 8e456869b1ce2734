// What batch norm's forward and backward share: how the elements of a channel are walked, and how sums are merged.
#pragma once

#include <type_traits>

#include "cpu/batch_norm_act.h"
#include "cpu/moments.h"
#include "cpu/row_tiles.h"
#include "gencore/activation.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

// A channel that lies in one piece and is no larger than this is read once from memory: what its second pass reads is
// still in L2.
constexpr int64_t kResidentBytes = 640 << 10;
// Outputs at least this large are written past the caches.
constexpr int64_t kStreamBytes = 16 << 20;

// A chunk of one channel's plane, by its number among all of them as they lie in memory.
struct Piece {
  int64_t channel, chunk, sample, offset, count;
};
inline Piece piece_of(const BatchNormWalk& walk, int64_t index) {
  const int64_t per_plane = walk.segment_chunks, plane = index / per_plane, begin = index % per_plane;
  const int64_t segment = plane / walk.shape.channels, chunk = segment * per_plane + begin;
  const int64_t first = begin * walk.chunk_size, left = walk.shape.inner - first;
  return {plane - segment * walk.shape.channels, chunk, chunk / walk.sample_chunks, plane * walk.shape.inner + first,
          left < walk.chunk_size ? left : walk.chunk_size};
}

// Some columns of a chunk of rows, by the number of these among all of them as they lie in memory.
struct Rows : Block {
  int64_t chunk, sample;
};
inline Rows rows_of(const BatchNormWalk& walk, int64_t index) {
  const int64_t chunk = index / walk.column_blocks, first = index % walk.column_blocks * walk.kColumns;
  const int64_t sample = chunk / walk.segment_chunks, size = walk.segment_size;
  const int64_t begin = sample * size + chunk % walk.segment_chunks * walk.chunk_size;
  const int64_t end = begin + walk.chunk_size, sample_end = (sample + 1) * size;
  const int64_t left = walk.shape.channels - first;
  const Block block{begin, end < sample_end ? end : sample_end, first, left < walk.kColumns ? left : walk.kColumns};
  return {block, chunk, sample};
}

// Elements of each channel in a chunk.
inline int64_t chunk_count(const BatchNormWalk& walk, int64_t chunk) {
  const int64_t left = walk.segment_size - chunk % walk.segment_chunks * walk.chunk_size;
  return left < walk.chunk_size ? left : walk.chunk_size;
}

// body(index) for all Pieces or Rows, in parallel. `backwards` begins each thread's range with what was read last,
// which the caches still hold; within 128 KiB it goes forwards all the same, as the processor's own fetching ahead
// wants it.
template <class Body>
inline void for_each_chunk(const BatchNormWalk& walk, bool backwards, const Body& body) {
  const int64_t chunks = walk.chunks * (walk.planar ? walk.shape.channels : walk.column_blocks);
  const int64_t grain = kGrain * chunks / (walk.shape.numel() + 1) + 1;
  parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    const int64_t block = backwards ? 2 * grain : end - begin;
    for (int64_t last = end; last > begin; last -= block)
      for (int64_t i = last - block < begin ? begin : last - block; i < last; i++) body(i);
    stream_fence();
  });
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

// Adds the columns of each of `block` channels to its number in `to`.
template <class C>
GENCORE_INLINE void add_columns(const C* columns, int64_t block, int64_t fold, double* to) {
  if (fold == 1)
    for (int64_t i = 0; i < block; i++) to[i] += columns[i];
  else
    for (int64_t i = 0; i < block; i++)
      for (int64_t j = i * fold; j < (i + 1) * fold; j++) to[i] += columns[j];
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
  for_each_channel_block(walk.channels, args.samples * walk.fold, [&](int64_t first, int64_t block) {
    for (int64_t c = first; c < first + block; c++) set_columns<C>(args, columns, c, walk.fold);
  });
}

}  // namespace gencore::GENCORE_ISA
