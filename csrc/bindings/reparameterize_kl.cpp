#include "cpu/reparameterize_kl.h"

#include <vector>

#include "bindings/check.h"

namespace gencore {

namespace {

uint64_t read_seed(const Tensor& seed) {
  check_dense(seed, "seed", ScalarType::Long, 1);
  return static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr()));
}

void forward(const Tensor& mu, const Tensor& logvar, const Tensor& seed, bool sample, Tensor z, Tensor kl) {
  const int64_t rows = kl.numel(), numel = mu.numel();
  STD_TORCH_CHECK(rows > 0 ? numel % rows == 0 : numel == 0, "kl must have one element for each row of mu");
  const Dtype dtype = dtype_of(mu, "mu");
  check_dense(mu, "mu", mu.scalar_type(), numel);
  check_dense(logvar, "logvar", mu.scalar_type(), numel);
  check_dense(z, "z", mu.scalar_type(), numel);
  check_dense(kl, "kl", compute_type(mu.scalar_type()), rows);
  if (rows == 0) return;
  const int64_t columns = numel / rows;
  std::vector<double> partial_sums(kl_chunks(columns) > 1 ? rows * kl_chunks(columns) : 0);
  run_reparameterize_kl({mu.const_data_ptr(), logvar.const_data_ptr(), z.mutable_data_ptr(), kl.mutable_data_ptr(),
                         rows, columns, read_seed(seed), sample, dtype, partial_sums.data()});
}

void backward(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mu, const Tensor& logvar, const Tensor& seed,
              bool sample, Tensor grad_mu, Tensor grad_logvar) {
  const int64_t rows = grad_kl.numel(), numel = mu.numel();
  STD_TORCH_CHECK(rows > 0 ? numel % rows == 0 : numel == 0, "grad_kl must have one element for each row of mu");
  const Dtype dtype = dtype_of(mu, "mu");
  const ScalarType type = mu.scalar_type();
  check_dense(mu, "mu", type, numel);
  check_dense(grad_z, "grad_z", type, numel);
  check_dense(logvar, "logvar", type, numel);
  check_dense(grad_mu, "grad_mu", type, numel);
  check_dense(grad_logvar, "grad_logvar", type, numel);
  check_dense(grad_kl, "grad_kl", compute_type(type), rows);
  if (numel == 0) return;
  run_reparameterize_kl_backward({grad_z.const_data_ptr(), grad_kl.const_data_ptr(), mu.const_data_ptr(),
                                  logvar.const_data_ptr(), grad_mu.mutable_data_ptr(), grad_logvar.mutable_data_ptr(),
                                  rows, numel / rows, read_seed(seed), sample, dtype});
}

void normal(const Tensor& seed, int64_t rows, Tensor out) {
  const int64_t numel = out.numel();
  STD_TORCH_CHECK(rows > 0 ? numel % rows == 0 : numel == 0, "out must be divisible into rows");
  check_dense(out, "out", ScalarType::Float, numel);
  if (numel == 0) return;
  run_philox_normal({static_cast<float*>(out.mutable_data_ptr()), rows, numel / rows, read_seed(seed)});
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def("reparameterize_kl(Tensor mu, Tensor logvar, Tensor seed, bool sample, Tensor(a!) z, Tensor(b!) kl) -> ()");
  m.def(
      "reparameterize_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, bool sample, "
      "Tensor(a!) grad_mu, Tensor(b!) grad_logvar) -> ()");
  m.def("philox_normal(Tensor seed, int rows, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("reparameterize_kl", TORCH_BOX(&gencore::forward));
  m.impl("reparameterize_kl_backward", TORCH_BOX(&gencore::backward));
  m.impl("philox_normal", TORCH_BOX(&gencore::normal));
}
