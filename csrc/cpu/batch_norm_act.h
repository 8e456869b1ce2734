// Batch normalisation with a fused activation and an optional residual, forward and backward.
//
// Tensors are [outer, channels, inner]: contiguous N, C, H, W has outer = N and inner = H W; channels_last (and [N, C])
// has outer = N H W and inner = 1.
//
// Statistics come from chunks of fixed size, each in two passes (mean, then squared deviations from it) while it lies
// in the cache, merged by Chan's formula in float64 in a fixed order: the bits depend on the shape alone, not on the
// number of threads.
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

// Elements of one channel (inner > 1) or rows (inner == 1) that make one chunk of the statistics.
constexpr int64_t kPlanarChunk = 8192;
constexpr int64_t kRowChunk = 128;

inline int64_t batch_norm_chunks(const BatchNormShape& shape) {
  const int64_t size = shape.inner > 1 ? kPlanarChunk : kRowChunk;
  return (shape.count() + size - 1) / size;
}

// `C` below is the compute type: double for float64, float for the others.
struct BatchNormActArgs {
  const void* x;
  const void* residual;  // like x, or null
  void* y;
  const void* weight;  // [channels] of C, or null: 1
  const void* bias;    // [channels] of C, or null: 0
  void* mean;          // [channels] of C; written when training, read otherwise
  void* var;           // [channels] of C, biased; the same
  BatchNormShape shape;
  bool training;
  double eps;
  Activation activation;
  double negative_slope;
  Dtype dtype;
  void* partial;  // 2 * batch_norm_chunks * channels of C
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
  void* grad_weight;    // [channels] of C
  void* grad_bias;      // [channels] of C
  BatchNormShape shape;
  bool training;
  double eps;
  Activation activation;
  double negative_slope;
  Dtype dtype;
  void* partial;  // 2 * batch_norm_chunks * channels of C
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(batch_norm_act, const BatchNormActArgs&)
GENCORE_DECLARE_KERNEL(batch_norm_act_backward, const BatchNormActBackwardArgs&)
