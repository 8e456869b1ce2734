// Spectral normalisation of all layers of a network: power iterations, sigma = u^T W v, W / sigma where it is wanted,
// and the gradient.
//
// A weight is [outer, rows, inner] in memory: u belongs to the rows, v to outer and inner together (outer > 1 where the
// outputs are not the first dimension, as in transposed convolution). Layers of up to kLargeLayer elements are worked
// on whole, one thread a layer; larger ones are cut among the threads, each sum still being added up by one thread in a
// fixed order: the bits do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

// `C` is the compute type: double for float64, float for the others.
struct SpectralNormLayer {
  const void* weight;
  void *u, *v;       // of C; [rows] and [outer, inner]
  void* sigma;       // of C; one number
  void* normal;      // W / sigma, or null: it is not wanted; backward: the gradient of the weight
  const void* grad;  // backward: the gradient of W / sigma, or null
  const void* grad_sigma;
  int64_t outer, rows, inner;
  int64_t columns() const { return outer * inner; }
  int64_t numel() const { return outer * rows * inner; }
};

struct SpectralNormArgs {
  const SpectralNormLayer* layers;
  int64_t count;
  int64_t iterations;
  double eps;
  bool v_first;
  Dtype dtype;
};

struct SpectralNormBackwardArgs {
  const SpectralNormLayer* layers;
  int64_t count;
  double eps;
  Dtype dtype;
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(spectral_norm, const SpectralNormArgs&)
GENCORE_DECLARE_KERNEL(spectral_norm_backward, const SpectralNormBackwardArgs&)
