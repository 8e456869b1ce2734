// x and `maps` constant maps: for each slice of the channels, the mean standard deviation within groups of samples.
//
// Sample n belongs to group n modulo batch / group. Samples are [channels, pixels], or [pixels, channels] where they
// are channels_last; y has channels + maps. Sums come from blocks of fixed size, merged in float64 in a fixed order:
// the bits depend on the shape alone, not on the number of threads.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

struct MinibatchStddevArgs {
  const void* x;
  const void* grad_y;  // of the gradient alone
  void* result;        // y; grad_x
  int64_t batch, channels, pixels, group, maps;
  bool channels_last;
  double eps;
  Dtype dtype;

  int64_t groups() const { return batch / group; }
  int64_t width() const { return channels / maps; }     // channels of a slice
  int64_t sample() const { return channels * pixels; }  // elements of a sample of x
  int64_t slice() const { return width() * pixels; }    // elements of a sample that one map is about
  int64_t y_channels() const { return channels + maps; }
  int64_t y_sample() const { return y_channels() * pixels; }
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(minibatch_stddev, const MinibatchStddevArgs&)
GENCORE_DECLARE_KERNEL(minibatch_stddev_backward, const MinibatchStddevArgs&)
