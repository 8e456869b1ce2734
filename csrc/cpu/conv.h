// Convolution and transposed convolution in up to three dimensions, their input and weight gradients, and linear.
//
// Everything is channels_last inside: a pixel is a row of channels. A convolution is, for each output pixel, the sum
// over filter taps of (row of the input) x (matrix of the tap): one register tile (tile.h) takes a dozen pixels and up
// to 64 output channels through all taps at once, reading input rows where they lie. Fewer than three dimensions are
// three with sizes of 1.
//
//   forward           conv_forward with transposed = false
//   transposed        conv_forward with transposed = true: output pixels are sorted by phase (index modulo stride);
//   each
//                     phase sees the same few taps at step 1, so it is a small dense convolution and no zero is
//                     inserted
//   input gradient    of the one is the other, with the weight packed along its other dimension
//   3x3, and 4x4 at a stride of 2, in float32: conv_winograd and conv_winograd_weight_gradient, where there are enough
//                     channels and pixels
//   weight gradient   conv_weight_gradient: outer products of pixel rows, summed over pixels
#pragma once

#include <cstdint>

#include "gencore/activation_kind.h"
#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

// The most taps along the depth that conv_winograd and its weight gradient take.
constexpr int64_t kMostDepth = 8;

// How conv_winograd and its packing go about it: the schemes of conv_winograd.h.
enum class Winograd : int64_t {
  none,           // conv_forward does it
  unit,           // a stride of 1, tiles of 2x2 outputs, or along a line of 12
  strided,        // a stride of 2, tiles of 2x2 outputs (transposed, of each phase)
  unit_large,     // a stride of 1, tiles of 4x4 outputs
  strided_large,  // a stride of 2, tiles of 3x3 outputs (transposed, of each phase); 4x4, or transposed
  unit_inexact,   // as unit_large with fewer products and larger rounding errors
};

// Sizes are (depth, height, width). Channels are totals over all groups.
struct ConvShape {
  int64_t batch, in_channels, out_channels, groups;
  int64_t in_size[3], out_size[3], kernel[3], stride[3], padding[3], dilation[3];
};

// y = activation(scale conv(x) + bias + residual). Images are [batch, channels, depth, height, width], contiguous, or
// the same in channels_last. scale, bias and slopes are float (double for float64). dtype: float32, float64 or
// bfloat16.
struct ConvForwardArgs {
  ConvShape shape;
  bool transposed;
  const void* x;
  const void* packed;  // from conv_pack
  const void* scale;   // [out_channels] or [batch, out_channels], or null
  bool scale_per_sample;
  const void* bias;      // [out_channels], or null
  const void* residual;  // as y, or null
  const void* slopes;    // [out_channels], for PReLU
  void* y;
  // Of each channel of y as stored, [out_channels], the variance biased; float (double for float64). Null where nobody
  // wants them; not with tanh, sigmoid and SiLU.
  void* mean;
  void* var;
  bool x_channels_last, y_channels_last;
  Activation activation;
  double negative_slope;  // for LeakyReLU
  Dtype dtype;
  Winograd winograd;
  // conv_winograd's alone: y = clamp(gain * activation(scale conv(style x) + noise + bias + residual)).
  const void* style;  // [batch, in_channels], or null
  const void* noise;  // [batch or 1, pixels of y], or null
  bool noise_per_sample;
  double gain, clamp;  // clamp below 0: none
  bool* finite;        // whether all sums are
  // Of contiguous images of one line: channel c of pixel p is the number p * phases + c % phases of plane c / phases.
  // A power of two, 8 at most.
  int64_t x_phases = 1, y_phases = 1;
};

// The weight [groups * d0, d1, kernel...] with any strides, as panels for conv_forward: the tile's columns run along
// the first dimension (columns_first) or the second.
struct ConvPackArgs {
  const void* weight;
  void* packed;  // null: only *bytes is computed
  int64_t groups, size0, size1, kernel[3];
  int64_t stride0, stride1, kernel_stride[3];
  bool columns_first;
  Dtype dtype;
  int64_t* bytes;
  Winograd winograd;  // for conv_winograd_pack; columns_first is then that the convolution is not transposed
};

// weight_gradient[d][g][tap] = sum over pixels q of dense[q][d] * gathered[q * stride - padding + tap * dilation][g],
// with d over all dense channels and g over the gathered channels of d's group. For a convolution the output's gradient
// is dense and the input gathered; for a transposed convolution the input is dense and the output's gradient gathered.
// In `shape`, in_* is gathered and out_* is dense.
struct ConvWeightGradientArgs {
  ConvShape shape;
  const void* dense;
  const void* gathered;
  void* weight_gradient;  // [out_channels, in_channels / groups, kernel...], contiguous
  bool dense_channels_last, gathered_channels_last;
  Dtype dtype;
  Winograd winograd;
};

struct FingerprintArgs {
  const void* data;
  int64_t bytes;
  uint64_t* result;
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(conv_forward, const ConvForwardArgs&)
GENCORE_DECLARE_KERNEL(conv_pack, const ConvPackArgs&)
GENCORE_DECLARE_KERNEL(conv_winograd, const ConvForwardArgs&)
GENCORE_DECLARE_KERNEL(conv_winograd_pack, const ConvPackArgs&)
GENCORE_DECLARE_KERNEL(conv_weight_gradient, const ConvWeightGradientArgs&)
GENCORE_DECLARE_KERNEL(conv_winograd_weight_gradient, const ConvWeightGradientArgs&)
GENCORE_DECLARE_KERNEL(fingerprint, const FingerprintArgs&)
