#include "cpu/spectral_norm.h"

#include <tuple>
#include <utility>
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
                                         const Tensor& sigma, const std::vector<const Tensor*>& results,
                                         const char* result_name) {
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
    if (results[i]) layer.normal = const_cast<void*>(data_of(*results[i], result_name, weight, false));
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

// Strided vectors to one that has them all, one after another, and back.
template <class T>
void gather(const Tensors& vectors, T* to) {
  for (const Tensor& vector : vectors) {
    const T* from = static_cast<const T*>(vector.const_data_ptr());
    for (int64_t i = 0, count = vector.size(0), stride = vector.stride(0); i < count; i++) *to++ = from[i * stride];
  }
}
template <class T>
void scatter(const T* from, Tensors& vectors) {
  for (Tensor& vector : vectors) {
    T* to = static_cast<T*>(vector.mutable_data_ptr());
    for (int64_t i = 0, count = vector.size(0), stride = vector.stride(0); i < count; i++) to[i * stride] = *from++;
  }
}

int64_t total_length(const Tensors& vectors, ScalarType type) {
  int64_t total = 0;
  for (const Tensor& vector : vectors) {
    check_cpu(vector, "buffers");
    STD_TORCH_CHECK(vector.dim() == 1 && vector.scalar_type() == type, "buffers must be vectors of the compute dtype");
    total += vector.size(0);
  }
  return total;
}

// buffers: u and v of each layer; `vectors`, a copy of them after the iterations. `normal` has the layers that are
// `written`.
std::tuple<Tensors, Tensor, Tensor> forward(const Tensors& weights, const Tensors& buffers, int64_t iterations,
                                            double eps, const Sizes& dims, bool v_first,
                                            const std::vector<bool>& written) {
  STD_TORCH_CHECK(iterations >= 0, "n_power_iterations must not be negative");
  STD_TORCH_CHECK(!weights.empty() && written.size() == weights.size() && buffers.size() == 2 * weights.size(),
                  "weights, dims and written must have the same, positive length, buffers twice that");
  const ScalarType type = compute_type(weights[0].scalar_type());
  const int64_t total = total_length(buffers, type);
  Tensor vectors = torch::stable::new_empty(weights[0], {total}, type);
  Tensor sigma = torch::stable::new_empty(weights[0], {static_cast<int64_t>(weights.size())}, type);
  if (type == ScalarType::Double)
    gather(buffers, static_cast<double*>(vectors.mutable_data_ptr()));
  else
    gather(buffers, static_cast<float*>(vectors.mutable_data_ptr()));
  Tensors normal;
  std::vector<const Tensor*> results;
  normal.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); i++)
    if (written[i]) normal.push_back(torch::stable::empty_like(weights[i]));
  for (size_t i = 0, n = 0; i < weights.size(); i++) results.push_back(written[i] ? &normal[n++] : nullptr);
  const auto layers = layers_of(weights, dims, vectors, sigma, results, "normal");
  run_spectral_norm(
      {layers.data(), static_cast<int64_t>(layers.size()), iterations, eps, v_first, dtype_of(weights[0], "weight")});
  return {std::move(normal), sigma, vectors};
}

void store(const Tensor& vectors, Tensors buffers) {
  const ScalarType type = vectors.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float, "vectors must be float32 or float64");
  check_dense(vectors, "vectors", type, total_length(buffers, type));
  if (type == ScalarType::Double)
    scatter(static_cast<const double*>(vectors.const_data_ptr()), buffers);
  else
    scatter(static_cast<const float*>(vectors.const_data_ptr()), buffers);
}

void backward(const Tensors& grads, const Tensor& grad_sigma, const Tensors& weights, const Tensor& sigma,
              const Tensor& vectors, double eps, const Sizes& dims, const Tensors& grad_weights) {
  std::vector<const Tensor*> results;
  for (const Tensor& grad_weight : grad_weights) results.push_back(&grad_weight);
  auto layers = layers_of(weights, dims, vectors, sigma, results, "grad_weights");
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
      "spectral_norm(Tensor[] weights, Tensor[] buffers, int n_power_iterations, float eps, int[] dims, bool v_first, "
      "bool[] written) -> (Tensor[], Tensor, Tensor)");
  m.def("spectral_norm_store(Tensor vectors, Tensor(a!)[] buffers) -> ()");
  m.def(
      "spectral_norm_backward(Tensor[] grads, Tensor grad_sigma, Tensor[] weights, Tensor sigma, Tensor vectors, "
      "float eps, int[] dims, Tensor(a!)[] grad_weights) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("spectral_norm", TORCH_BOX(&gencore::forward));
  m.impl("spectral_norm_store", TORCH_BOX(&gencore::store));
  m.impl("spectral_norm_backward", TORCH_BOX(&gencore::backward));
}
