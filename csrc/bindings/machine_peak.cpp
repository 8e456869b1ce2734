#include "cpu/machine_peak.h"

#include <vector>

#include "bindings/check.h"
#include "gencore/parallel.h"

namespace gencore {

namespace {

double fma(int64_t iterations) {
  STD_TORCH_CHECK(iterations >= 0, "iterations must be non-negative, got ", iterations);
  std::vector<double> sink(num_threads());
  double flops = 0;
  run_fma_peak({iterations, &flops, sink.data()});
  return flops;
}

void copy(const Tensor& source, bool streaming, Tensor destination) {
  const int64_t count = source.numel();
  check_dense(source, "source", ScalarType::Float, count);
  check_dense(destination, "destination", ScalarType::Float, count);
  float* to = static_cast<float*>(destination.mutable_data_ptr());
  STD_TORCH_CHECK(count % 16 == 0, "source must have a multiple of 16 elements, got ", count);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(to) % 64 == 0, "destination must be aligned to 64 bytes");
  run_copy_peak({static_cast<const float*>(source.const_data_ptr()), to, count, streaming});
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def("fma_peak(int iterations) -> float");
  m.def("copy_peak(Tensor source, bool streaming, Tensor(a!) destination) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CompositeExplicitAutograd, m) { m.impl("fma_peak", TORCH_BOX(&gencore::fma)); }

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) { m.impl("copy_peak", TORCH_BOX(&gencore::copy)); }
