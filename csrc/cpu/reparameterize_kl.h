// Reparameterisation and KL divergence of a diagonal Gaussian from N(0, I), in one pass over mu and logvar.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

// All matrices are [rows, columns], contiguous, of `dtype`; kl and grad_kl are [rows] of the compute type.
struct ReparameterizeKlArgs {
  const void* mu;
  const void* logvar;
  void* z;
  void* kl;
  int64_t rows, columns;
  uint64_t seed;
  bool sample;  // false: z = mu, no noise is drawn
  Dtype dtype;
  // kl_chunks(columns) doubles a row, needed where a row has more than one chunk.
  double* partial_sums;
};

struct ReparameterizeKlBackwardArgs {
  const void* grad_z;
  const void* grad_kl;
  const void* mu;
  const void* logvar;
  void* grad_mu;
  void* grad_logvar;
  int64_t rows, columns;
  uint64_t seed;
  bool sample;
  Dtype dtype;
};

// Standard normal numbers [rows, columns], float32: the noise that the two kernels above draw.
struct PhiloxNormalArgs {
  float* out;
  int64_t rows, columns;
  uint64_t seed;
};

// Rows are worked on in chunks of this many columns, whatever the number of threads, so that sums never depend on it.
constexpr int64_t kKlChunk = 4096;
inline int64_t kl_chunks(int64_t columns) { return (columns + kKlChunk - 1) / kKlChunk; }

}  // namespace gencore

GENCORE_DECLARE_KERNEL(reparameterize_kl, const ReparameterizeKlArgs&)
GENCORE_DECLARE_KERNEL(reparameterize_kl_backward, const ReparameterizeKlBackwardArgs&)
GENCORE_DECLARE_KERNEL(philox_normal, const PhiloxNormalArgs&)
