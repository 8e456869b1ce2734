// Means and sums of squared deviations of many small parts, merged into those of the whole.
#pragma once

#include "gencore/parallel.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;
constexpr int kMergeBlock = 64;

// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
GENCORE_INLINE void merge(double& count, double& mean, double& m2, double count_b, double mean_b, double m2_b) {
  const double total = count + count_b, delta = mean_b - mean;
  mean += delta * (count_b / total);
  m2 += m2_b + delta * delta * (count * count_b / total);
  count = total;
}

// body(first, width) for blocks of channels, in parallel. One channel of a part takes the time of some 16 elements of
// a plain loop, and what follows the last part that of 8 more.
template <class Body>
inline void for_each_channel_block(int64_t channels, int64_t parts, const Body& body) {
  parallel_for(0, (channels + kMergeBlock - 1) / kMergeBlock, kGrain / (16 * (parts + 8) * kMergeBlock) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; block++) {
                   const int64_t first = block * kMergeBlock, left = channels - first;
                   body(first, left < kMergeBlock ? left : int64_t{kMergeBlock});
                 }
               });
}

}  // namespace gencore::GENCORE_ISA
