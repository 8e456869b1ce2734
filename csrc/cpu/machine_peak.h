// The yardsticks of the benchmarks: how fast this machine multiplies and adds, and how fast it copies.
#pragma once

#include <cstdint>

#include "gencore/isa.h"

namespace gencore {

// Every thread runs `iterations` rounds of independent fused multiply-adds on registers; `flops` receives how many
// operations that was (a multiplication and an addition count as two), `sink` a number that keeps the work alive.
struct FmaPeakArgs {
  int64_t iterations;
  double* flops;
  double* sink;
};

// destination = source, `count` floats, on all threads; `streaming` stores past the caches (destination aligned to 64).
struct CopyPeakArgs {
  const float* source;
  float* destination;
  int64_t count;
  bool streaming;
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(fma_peak, const FmaPeakArgs&)
GENCORE_DECLARE_KERNEL(copy_peak, const CopyPeakArgs&)
