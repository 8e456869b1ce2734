#include "cpu/spectral_norm.h"

#include <vector>

#include "bindings/check.h"

namespace gencore {

namespace {

using Tensors = std::vector<Tensor>;
using Sizes = std::vector<int64_t>;

// The data of one of the tensors that come with a weight; null where it is empty and may be.
const void* data_of(const Tensor& tensor, const char* name, const Tensor& weight, bool optional) {
  const bool given = tensor.numel() > 0 || !optional;
  check_dense(tensor, name, weight.scalar_type(), given ? weight.numel() : 0);
  return given ? tensor.const_data_ptr() : nullptr;
}

// The layers' weights and vectors, u and v of each after those of the one before.
std::vector<SpectralNormLayer> layers_of(const Tensors& weights, const Sizes& dims, const Tensor& vectors,
                                         const Tensor& sigma, const Tensors& results, const char* result_name,
                                         bool optional) {
  const int64_t count = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(count > 0 && dims.size() == weights.size() && results.size() == weights.size(), "weights, dims and ",
                  result_name, " must have the same, positive length");
  const ScalarType type = weights[0].scalar_type();
  check_dense(sigma, "sigma", compute_type(type), count);
  const size_t size = type == ScalarType::Double ? 8 : 4;
  char* vector = static_cast<char*>(const_cast<void*>(vectors.const_data_ptr()));
  std::vector<SpectralNormLayer> layers;
  int64_t total = 0;
  for (int64_t i = 0; i < count; i++) {
    const Tensor& weight = weights[i];
    check_dense(weight, "weight", type, weight.numel());
    const int64_t dim = dims[i];
    STD_TORCH_CHECK(dim >= 0 && dim < weight.dim(), "dims must name a dimension of each weight");
    SpectralNormLayer layer{};
    layer.outer = layer.inner = 1;
    for (int64_t d = 0; d < weight.dim(); d++) {
      int64_t& part = d < dim ? layer.outer : d == dim ? layer.rows : layer.inner;
      part = d == dim ? weight.size(d) : part * weight.size(d);
    }
    layer.weight = weight.const_data_ptr();
    layer.normal = const_cast<void*>(data_of(results[i], result_name, weight, optional));
    layer.sigma = static_cast<char*>(const_cast<void*>(sigma.const_data_ptr())) + i * size;
    layer.u = vector + total * size;
    total += layer.rows;
    layer.v = vector + total * size;
    total += layer.columns();
    layers.push_back(layer);
  }
  check_dense(vectors, "vectors", compute_type(type), total);
  return layers;
}

// An empty tensor among `normal` or `grads` stands for none.
void forward(const Tensors& weights, Tensor vectors, int64_t iterations, double eps, const Sizes& dims, bool v_first,
             const Tensors& normal, Tensor sigma) {
  STD_TORCH_CHECK(iterations >= 0, "n_power_iterations must not be negative");
  const auto layers = layers_of(weights, dims, vectors, sigma, normal, "normal", true);
  run_spectral_norm(
      {layers.data(), static_cast<int64_t>(layers.size()), iterations, eps, v_first, dtype_of(weights[0], "weight")});
}

void backward(const Tensors& grads, const Tensor& grad_sigma, const Tensors& weights, const Tensor& sigma,
              const Tensor& vectors, double eps, const Sizes& dims, const Tensors& grad_weights) {
  auto layers = layers_of(weights, dims, vectors, sigma, grad_weights, "grad_weights", false);
  STD_TORCH_CHECK(grads.size() == weights.size(), "there must be a gradient for each weight");
  check_dense(grad_sigma, "grad_sigma", sigma.scalar_type(), sigma.numel());
  const size_t size = weights[0].scalar_type() == ScalarType::Double ? 8 : 4;
  for (size_t i = 0; i < layers.size(); i++) {
    layers[i].grad = data_of(grads[i], "grad", weights[i], true);
    layers[i].grad_sigma = static_cast<const char*>(grad_sigma.const_data_ptr()) + i * size;
  }
  run_spectral_norm_backward({layers.data(), static_cast<int64_t>(layers.size()), eps, dtype_of(weights[0], "weight")});
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "spectral_norm(Tensor[] weights, Tensor(a!) vectors, int n_power_iterations, float eps, int[] dims, "
      "bool v_first, Tensor(b!)[] normal, Tensor(c!) sigma) -> ()");
  m.def(
      "spectral_norm_backward(Tensor[] grads, Tensor grad_sigma, Tensor[] weights, Tensor sigma, Tensor vectors, "
      "float eps, int[] dims, Tensor(a!)[] grad_weights) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("spectral_norm", TORCH_BOX(&gencore::forward));
  m.impl("spectral_norm_backward", TORCH_BOX(&gencore::backward));
}
