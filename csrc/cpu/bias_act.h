// clamp(gain act(x scale[n][c] + noise[n][pixel] + bias[c])) in one pass, and all of its gradients in another.
//
// Tensors are [batch, channels, pixels], or [batch, pixels, channels] where they are channels_last (and for [N, C]).
// Sums over pixels come from blocks of fixed size, merged in float64 in a fixed order: the bits depend on the shape
// alone, not on the number of threads.
#pragma once

#include <cstdint>

#include "gencore/activation_kind.h"
#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

struct BiasActShape {
  int64_t batch, channels, pixels;
  bool channels_last;
  int64_t numel() const { return batch * channels * pixels; }
  // Pixels of one sample that make one block of the sums.
  int64_t block_size() const { return channels_last ? 64 : 2048; }
  int64_t blocks() const { return (pixels + block_size() - 1) / block_size(); }
};

// `C` below is the compute type: double for float64, float for the others.
struct BiasActArgs {
  const void* x;
  void* y;
  const void* scale;           // [batch, channels] of C, or null: 1
  const void* noise;           // [batch or 1, pixels] of C, or null: 0
  const void* bias;            // [channels] of C, or null: 0
  int64_t noise_batch_stride;  // 0 where all samples share the noise
  BiasActShape shape;
  Activation activation;
  double alpha, gain, clamp;  // clamp < 0: none
  Dtype dtype;
};

struct BiasActBackwardArgs {
  BiasActArgs forward;  // y is not read
  const void* grad_y;
  void* grad_x;
  void* grad_scale;  // [batch, channels] of C, or null
  void* grad_noise;  // [batch, pixels] of C, or null
  void* grad_bias;   // [channels] of C, or null
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(bias_act, const BiasActArgs&)
GENCORE_DECLARE_KERNEL(bias_act_backward, const BiasActBackwardArgs&)
