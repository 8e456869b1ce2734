#include "cpu/machine_peak.h"

#include "gencore/parallel.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

// Independent sums: more than latency times issue width of any processor so far, and, with the two factors, no more
// than the registers that every instruction set has (16).
constexpr int kSums = kLanes == 16 ? 24 : 12;

// Cache line of floats: the unit in which threads share out a copy, so that every part starts aligned.
constexpr int64_t kLine = 16;

double multiply_add_rounds(int64_t iterations) {
  // The factor is below one, so the sums converge and stay normal numbers.
  const vfloat factor = vfloat{} + 0.5f, term = vfloat{} + 1.0f;
  vfloat sum[kSums];  // every loop over it is unrolled, or it would live in memory
#pragma GCC unroll 24
  for (int i = 0; i < kSums; i++) sum[i] = vfloat{} + static_cast<float>(3 + i);  // not 2: it would stay 2
  for (int64_t n = 0; n < iterations; n++) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; i++) sum[i] = sum[i] * factor + term;
  }
  vfloat total = {};
#pragma GCC unroll 24
  for (int i = 0; i < kSums; i++) total += sum[i];
  return horizontal_sum(total);
}

}  // namespace

void fma_peak(const FmaPeakArgs& args) {
  const int threads = num_threads();
  *args.flops = 2.0 * kSums * kLanes * static_cast<double>(args.iterations) * threads;
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; thread++) args.sink[thread] = multiply_add_rounds(args.iterations);
  });
}

void copy_peak(const CopyPeakArgs& args) {
  const int64_t lines = args.count / kLine;
  parallel_for(0, lines, 1, [&](int64_t begin, int64_t end) {
    const float* source = args.source + begin * kLine;
    float* destination = args.destination + begin * kLine;
    const int64_t count = (end - begin) * kLine;
    if (args.streaming) {
      for (int64_t i = 0; i < count; i += kLanes) stream(destination + i, load(source + i));
      stream_fence();
    } else {
      for (int64_t i = 0; i < count; i += kLanes) store(destination + i, load(source + i));
    }
  });
}

}  // namespace gencore::GENCORE_ISA
