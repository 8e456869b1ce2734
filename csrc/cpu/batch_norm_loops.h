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

// C = 1 is planar whatever the layout, and then one run.
inline BatchNormShape simplified(BatchNormShape shape) {
  if (shape.channels == 1) return {1, 1, shape.outer * shape.inner};
  return shape;
}

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

inline int64_t chunk_end(const BatchNormShape& shape, int64_t chunk) {
  const int64_t size = shape.inner > 1 ? kPlanarChunk : kRowChunk;
  const int64_t end = (chunk + 1) * size, count = shape.count();
  return end < count ? end : count;
}
inline int64_t chunk_begin(const BatchNormShape& shape, int64_t chunk) {
  return chunk * (shape.inner > 1 ? kPlanarChunk : kRowChunk);
}

// Tasks for loops over the chunks of all channels: (channel, chunk) pairs, or chunks of rows.
inline int64_t chunk_tasks(const BatchNormShape& shape) {
  return batch_norm_chunks(shape) * (shape.inner > 1 ? shape.channels : 1);
}
inline int64_t chunk_grain(const BatchNormShape& shape) {
  const int64_t tasks = chunk_tasks(shape);
  return tasks == 0 ? 1 : kGrain * tasks / (shape.numel() + 1) + 1;
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

// Lanes [column, column + n) of a per-channel array.
template <class C>
GENCORE_INLINE vector_t<C> load_channels(const C* values, int64_t column, int64_t n) {
  return load(values + column, n);
}

}  // namespace gencore::GENCORE_ISA
