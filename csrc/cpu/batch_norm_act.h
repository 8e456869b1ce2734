// Batch normalisation with a fused activation and an optional residual, forward and backward.
//
// Tensors are [outer, channels, inner]: contiguous N, C, H, W has outer = N and inner = H W; channels_last (and [N, C])
// has outer = N H W and inner = 1.
//
// The family has two more members, made by two numbers of the arguments:
//   samples > 1    weight and bias are those of each sample, [samples, channels] (conditional batch norm): sums and
//                  normalisation go sample by sample, the statistics over all of them as before;
//   instances > 1  that many such tensors lie one behind the other, each with its own statistics, weight and bias
//                  (instance norm in channels_last; contiguous, it is batch norm of one sample with N C channels).
//
// All passes walk the memory as it lies (a plane of every channel before the next sample's): planes of one channel
// lie a power of two apart as a rule, where they fight for the same places of a cache and come at a third of memory's
// speed. Statistics come from chunks of fixed size, each in one pass, merged by Chan's formula in float64 in a fixed
// order: the bits depend on the shape alone, not on the number of threads.
#pragma once

#include <cstdint>

#include "gencore/activation_kind.h"
#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

struct BatchNormShape {
  int64_t outer, channels, inner;
  int64_t count() const { return outer * inner; }
  int64_t numel() const { return outer * channels * inner; }
};

// How the kernels walk a tensor, which is not always how it is shaped:
//   one channel         is one plane, whatever the layout;
//   planes up to 8 x 8  are too short to be walked one by one: a sample is taken as one row of channels * inner
//                       columns, and `fold` = inner neighbouring columns belong to one channel;
//   per-sample affine   keeps every chunk within one sample.
struct BatchNormWalk {
  BatchNormShape shape;
  int64_t fold;
  int64_t samples;
  bool planar;
  int64_t channels;
  // What lies in one piece: the elements of a plane, or the rows of a sample.
  int64_t segment_size;
  // Elements of a plane, or rows, that make one chunk of the statistics; one thread takes up to kColumns columns of it.
  int64_t chunk_size;
  static constexpr int64_t kColumns = 4096;
  int64_t column_blocks;
  // Of one channel: in a segment, in a sample, and in all.
  int64_t segment_chunks, sample_chunks, chunks;
  // Two partial results for each column of each chunk, three constants a column, and two a column and sample.
  int64_t workspace;
  // Five partial results, and four constants a column, and four a column and sample.
  int64_t double_backward_workspace;
};

inline __attribute__((always_inline)) BatchNormWalk batch_norm_walk(BatchNormShape shape, int64_t samples) {
  BatchNormWalk walk{};
  walk.fold = 1;
  walk.samples = samples;
  walk.channels = shape.channels;
  if (shape.channels == 1) {
    shape = {samples, 1, shape.count() / samples};
  } else if (samples == 1 && shape.outer > 1 && shape.inner > 1 && shape.inner <= 64) {
    walk.fold = shape.inner;
    shape = {shape.outer, shape.channels * shape.inner, 1};
  }
  walk.shape = shape;
  walk.planar = shape.inner > 1;
  walk.segment_size = walk.planar ? shape.inner : shape.outer / samples;
  walk.chunk_size = walk.planar ? 8192 : 128;
  walk.column_blocks = (shape.channels + walk.kColumns - 1) / walk.kColumns;
  walk.segment_chunks = (walk.segment_size + walk.chunk_size - 1) / walk.chunk_size;
  walk.sample_chunks = walk.segment_chunks * (walk.planar ? shape.outer / samples : 1);
  walk.chunks = walk.sample_chunks * samples;
  walk.workspace = (2 * walk.chunks + 3 + 2 * samples) * shape.channels;
  walk.double_backward_workspace = (5 * walk.chunks + 4 + 4 * samples) * shape.channels;
  return walk;
}

// `C` below is the compute type: double for float64, float for the others.
struct BatchNormActArgs {
  const void* x;
  const void* residual;  // like x, or null
  void* y;
  const void* weight;    // [instances, samples, channels] of C, or null: 1
  const void* bias;      // [instances, samples, channels] of C, or null: 0
  void* mean;            // [instances, channels] of C; written when training, read otherwise
  void* var;             // [instances, channels] of C, biased; the same
  BatchNormShape shape;  // of one instance
  int64_t samples;
  int64_t instances;
  bool training;
  double eps;
  Activation activation;
  double negative_slope;
  Dtype dtype;
  void* workspace;  // instances * batch_norm_walk(shape, samples).workspace of C
};

struct BatchNormActBackwardArgs {
  const void* grad_y;
  const void* x;
  const void* residual;
  const void* weight;
  const void* bias;
  const void* mean;
  const void* var;
  void* grad_x;
  void* grad_residual;  // null where there is none, or where nobody wants it
  void* grad_weight;    // [instances, samples, channels] of C
  void* grad_bias;      // [instances, samples, channels] of C
  BatchNormShape shape;
  int64_t samples;
  int64_t instances;
  bool training;
  double eps;
  Activation activation;
  double negative_slope;
  Dtype dtype;
  void* workspace;  // instances * batch_norm_walk(shape, samples).workspace of C
};

// The cotangents are those of the backward's results; the activation is none, ReLU or leaky ReLU.
struct BatchNormActDoubleBackwardArgs {
  const void* cotangent;         // of grad_x, like x
  const void* weight_cotangent;  // of grad_weight, or null: 0
  const void* bias_cotangent;    // of grad_bias, or null: 0
  const void* grad_y;
  const void* x;
  const void* weight;
  const void* bias;
  const void* mean;
  const void* var;
  void* grad_grad_y;
  void* grad_x;
  void* grad_weight;  // [instances, samples, channels] of C
  BatchNormShape shape;
  int64_t samples;
  int64_t instances;
  double eps;
  Activation activation;
  double negative_slope;
  Dtype dtype;
  void* workspace;  // instances * batch_norm_walk(shape, samples).double_backward_workspace of C
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(batch_norm_act, const BatchNormActArgs&)
GENCORE_DECLARE_KERNEL(batch_norm_act_backward, const BatchNormActBackwardArgs&)
GENCORE_DECLARE_KERNEL(batch_norm_act_double_backward, const BatchNormActDoubleBackwardArgs&)
