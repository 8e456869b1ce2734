// What batch norm's forward and backward share: how the elements of a channel are walked, and how sums are merged.
#pragma once

#include "cpu/batch_norm_act.h"
#include "gencore/activation.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

// A channel whose tensors are no larger than this is read once from memory: what its second pass reads is still in L2.
constexpr int64_t kResidentBytes = 640 << 10;
// Outputs at least this large are written past the caches.
constexpr int64_t kStreamBytes = 16 << 20;
// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;
constexpr int kMergeBlock = 64;

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

// Eight vectors of channels at a time: 128 channels of float32 with AVX-512, so that narrow rows are read as they lie
// in memory, and the sums stay in registers.
//
// body<vectors>(column, n) for the column tiles of a row (inner == 1); the last vector of a tile has n lanes.
template <int lanes, class Body>
GENCORE_INLINE void for_each_tile(int64_t channels, const Body& body) {
  constexpr int kWide = 8;
  int64_t column = 0;
  for (; column + kWide * lanes <= channels; column += kWide * lanes)
    body.template operator()<kWide>(column, int64_t{lanes});
  for (; column < channels; column += lanes) {
    const int64_t left = channels - column;
    body.template operator()<1>(column, left < lanes ? left : int64_t{lanes});
  }
}

inline int64_t chunk_begin(const BatchNormWalk& walk, int64_t chunk) { return chunk * walk.chunk_size(); }
inline int64_t chunk_end(const BatchNormWalk& walk, int64_t chunk) {
  const int64_t end = (chunk + 1) * walk.chunk_size(), count = walk.shape.count();
  return end < count ? end : count;
}

// Tasks for loops over the chunks of all channels: (channel, chunk) pairs, or chunks of rows.
inline int64_t chunk_tasks(const BatchNormWalk& walk) {
  return walk.chunks() * (walk.planar() ? walk.shape.channels : 1);
}
inline int64_t chunk_grain(const BatchNormWalk& walk) {
  return kGrain * chunk_tasks(walk) / (walk.shape.numel() + 1) + 1;
}

// body(first, width) for blocks of channels, in parallel.
template <class Body>
inline void for_each_channel_block(int64_t channels, int64_t work_per_channel, const Body& body) {
  parallel_for(0, (channels + kMergeBlock - 1) / kMergeBlock, kGrain / (work_per_channel * kMergeBlock) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; block++) {
                   const int64_t first = block * kMergeBlock, left = channels - first;
                   body(first, left < kMergeBlock ? left : int64_t{kMergeBlock});
                 }
               });
}

// Writes one value a channel into each of the channel's columns.
template <class C>
GENCORE_INLINE void fill_columns(C* columns, int64_t channel, int64_t fold, C value) {
  for (int64_t i = channel * fold; i < (channel + 1) * fold; i++) columns[i] = value;
}

// 1 / sqrt(var + eps), times the weight.
template <class C>
inline C channel_scale(const void* weight, C var, double eps, int64_t channel) {
  const double invstd = 1.0 / __builtin_sqrt(static_cast<double>(var) + eps);
  return static_cast<C>(weight ? static_cast<const C*>(weight)[channel] * invstd : invstd);
}
template <class C>
inline C channel_bias(const void* bias, int64_t channel) {
  return bias ? static_cast<const C*>(bias)[channel] : C{0};
}

}  // namespace gencore::GENCORE_ISA
