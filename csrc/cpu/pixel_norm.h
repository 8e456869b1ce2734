// y = x r, where r = 1 / sqrt(mean over the channels of x^2 + eps), and its gradient.
//
// Tensors are [outer, channels, inner]; with inner == 1 the channels lie side by side. A pixel's sums are taken by one
// thread in a fixed order: the bits depend on the shape alone, not on the number of threads.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

struct PixelNormArgs {
  const void* x;
  const void* grad_y;  // of the gradient alone
  void* result;        // y; grad_x = r (grad_y - x r^2 mean(grad_y x))
  int64_t outer, channels, inner;
  double eps;
  Dtype dtype;
  int64_t numel() const { return outer * channels * inner; }
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(pixel_norm, const PixelNormArgs&)
GENCORE_DECLARE_KERNEL(pixel_norm_backward, const PixelNormArgs&)
