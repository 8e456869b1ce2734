// Up-sampling, FIR filter and down-sampling of images, with the epilogue of a modulated convolution on the way out.
//
// Which taps of a filter meet pixels and which meet the zeros between them depends on the output index modulo `up`
// alone: each such phase has a list of taps of its own, and no zero is stored or multiplied. A filter of rank 1 is run
// as two: of four taps in fir_lines.h (planes) and fir_pixels.h (channels_last); others in fir_planes.h (planes) and
// upfirdn2d.cpp, where an output row is made from a few input rows while all of it lies in the first-level cache.
// Filters of another rank go row by row.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

// y = clamp(gain leaky(fir scale[n][c] + noise[n][pixel] + bias[c])), leaky having the slope `slope` below 0.
// Everything is float (double for float64).
struct FirEpilogue {
  bool wanted;
  const void* scale;           // [batch, channels], or null: 1
  const void* noise;           // [batch or 1, out_height, out_width], or null
  const void* bias;            // [channels], or null
  int64_t channels;            // of a sample
  int64_t noise_batch_stride;  // 0 where all samples share the noise
  double slope, gain, clamp;   // clamp < 0: none
};

// Contiguous [N, C, H, W] has images = N C and channels = 1; channels_last has images = N.
struct Upfirdn2dArgs {
  const void* x;  // [images, in_height, in_width, channels]
  void* y;        // [images, out_height, out_width, channels]
  int64_t images, channels, in_height, in_width, out_height, out_width;
  const double* taps;  // [filter_height][filter_width], as they are correlated with the image
  int64_t filter_height, filter_width;
  int64_t up_x, up_y, down_x, down_y, pad_x, pad_y;  // pads: those before the image; negative ones crop
  FirEpilogue epilogue;
  Dtype dtype;
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(upfirdn2d, const Upfirdn2dArgs&)
