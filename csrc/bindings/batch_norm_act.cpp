#include "cpu/batch_norm_act.h"

#include <vector>

#include "bindings/check.h"

namespace gencore {

namespace {

// How a call is seen by the kernels.
struct Problem {
  BatchNormShape shape;
  int64_t samples, instances;
  int64_t statistics() const { return instances * shape.channels; }
  int64_t affine() const { return samples * statistics(); }
};

// x's dimensions as [outer, channels, inner]. `channels_last`: the memory runs over the channels first. `per_sample`:
// weight and bias are [N, C]. `instance`: every sample has its own statistics, and its own weight and bias.
Problem problem_of(const Tensor& x, bool per_sample, bool instance, bool channels_last) {
  STD_TORCH_CHECK(x.dim() >= 2, "x must be [N, C, ...]");
  const int64_t n = x.size(0), c = x.size(1), numel = x.numel();
  if (numel == 0) return {{0, instance ? n * c : c, 1}, per_sample && !instance ? n : 1, 1};
  const int64_t inner = numel / (n * c);
  if (instance && channels_last) return {{inner, c, 1}, 1, n};
  if (instance) return {{1, n * c, inner}, 1, 1};
  const int64_t samples = per_sample ? n : 1;
  return {channels_last ? BatchNormShape{n * inner, c, 1} : BatchNormShape{n, c, inner}, samples, 1};
}

const void* optional_affine(const std::optional<Tensor>& tensor, const char* name, ScalarType type, int64_t numel) {
  if (!tensor) return nullptr;
  check_dense(*tensor, name, type, numel);
  return tensor->const_data_ptr();
}

Activation activation_of(int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index <= static_cast<int64_t>(Activation::silu), "unknown activation ", index);
  return static_cast<Activation>(index);
}

// Floats (doubles for float64) for partial sums and constants.
std::vector<char> workspace(Dtype dtype, const Problem& problem, bool doubled = false) {
  const BatchNormWalk walk = batch_norm_walk(problem.shape, problem.samples);
  const int64_t size = doubled ? walk.double_backward_workspace : walk.workspace;
  return std::vector<char>(problem.instances * size * compute_size_of(dtype));
}

void forward(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
             const std::optional<Tensor>& bias, Tensor mean, Tensor var, bool training, bool per_sample, bool instance,
             double eps, int64_t activation, double negative_slope, bool channels_last, Tensor y) {
  const Dtype dtype = dtype_of(x, "x");
  const ScalarType type = compute_type(x.scalar_type());
  const Problem problem = problem_of(x, per_sample, instance, channels_last);
  check_like(x, "x", x);
  check_like(y, "y", x);
  if (residual) check_like(*residual, "residual", x);
  check_dense(mean, "mean", type, problem.statistics());
  check_dense(var, "var", type, problem.statistics());
  const void* weight_pointer = optional_affine(weight, "weight", type, problem.affine());
  const void* bias_pointer = optional_affine(bias, "bias", type, problem.affine());
  if (x.numel() == 0) return;
  std::vector<char> partial = workspace(dtype, problem);
  run_batch_norm_act({x.const_data_ptr(), residual ? residual->const_data_ptr() : nullptr, y.mutable_data_ptr(),
                      weight_pointer, bias_pointer, mean.mutable_data_ptr(), var.mutable_data_ptr(), problem.shape,
                      problem.samples, problem.instances, training, eps, activation_of(activation), negative_slope,
                      dtype, partial.data()});
}

void backward(const Tensor& grad_y, const Tensor& x, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& mean,
              const Tensor& var, bool training, bool per_sample, bool instance, double eps, int64_t activation,
              double negative_slope, bool channels_last, Tensor grad_x, std::optional<Tensor> grad_residual,
              Tensor grad_weight, Tensor grad_bias) {
  const Dtype dtype = dtype_of(x, "x");
  const ScalarType type = compute_type(x.scalar_type());
  const Problem problem = problem_of(x, per_sample, instance, channels_last);
  check_like(x, "x", x);
  check_like(grad_y, "grad_y", x);
  check_like(grad_x, "grad_x", x);
  if (residual) check_like(*residual, "residual", x);
  if (grad_residual) check_like(*grad_residual, "grad_residual", x);
  check_dense(mean, "mean", type, problem.statistics());
  check_dense(var, "var", type, problem.statistics());
  check_dense(grad_weight, "grad_weight", type, problem.affine());
  check_dense(grad_bias, "grad_bias", type, problem.affine());
  const void* weight_pointer = optional_affine(weight, "weight", type, problem.affine());
  const void* bias_pointer = optional_affine(bias, "bias", type, problem.affine());
  if (x.numel() == 0) return;
  std::vector<char> partial = workspace(dtype, problem);
  run_batch_norm_act_backward({grad_y.const_data_ptr(),
                               x.const_data_ptr(),
                               residual ? residual->const_data_ptr() : nullptr,
                               weight_pointer,
                               bias_pointer,
                               mean.const_data_ptr(),
                               var.const_data_ptr(),
                               grad_x.mutable_data_ptr(),
                               grad_residual ? grad_residual->mutable_data_ptr() : nullptr,
                               grad_weight.mutable_data_ptr(),
                               grad_bias.mutable_data_ptr(),
                               problem.shape,
                               problem.samples,
                               problem.instances,
                               training,
                               eps,
                               activation_of(activation),
                               negative_slope,
                               dtype,
                               partial.data()});
}

// Of a backward through the batch's own statistics.
void double_backward(const Tensor& cotangent, const std::optional<Tensor>& weight_cotangent,
                     const std::optional<Tensor>& bias_cotangent, const Tensor& grad_y, const Tensor& x,
                     const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& mean,
                     const Tensor& var, bool per_sample, bool instance, double eps, int64_t activation,
                     double negative_slope, bool channels_last, Tensor grad_grad_y, Tensor grad_x, Tensor grad_weight) {
  const Dtype dtype = dtype_of(x, "x");
  const ScalarType type = compute_type(x.scalar_type());
  const Problem problem = problem_of(x, per_sample, instance, channels_last);
  check_like(x, "x", x);
  check_like(cotangent, "cotangent", x);
  check_like(grad_y, "grad_y", x);
  check_like(grad_grad_y, "grad_grad_y", x);
  check_like(grad_x, "grad_x", x);
  check_dense(mean, "mean", type, problem.statistics());
  check_dense(var, "var", type, problem.statistics());
  check_dense(grad_weight, "grad_weight", type, problem.affine());
  const Activation kind = activation_of(activation);
  STD_TORCH_CHECK(kind == Activation::identity || kind == Activation::relu || kind == Activation::leaky_relu,
                  "the activation must be identity, relu or leaky_relu");
  BatchNormActDoubleBackwardArgs args{};
  args.cotangent = cotangent.const_data_ptr();
  args.weight_cotangent = optional_affine(weight_cotangent, "weight_cotangent", type, problem.affine());
  args.bias_cotangent = optional_affine(bias_cotangent, "bias_cotangent", type, problem.affine());
  args.grad_y = grad_y.const_data_ptr();
  args.x = x.const_data_ptr();
  args.weight = optional_affine(weight, "weight", type, problem.affine());
  args.bias = optional_affine(bias, "bias", type, problem.affine());
  args.mean = mean.const_data_ptr();
  args.var = var.const_data_ptr();
  args.grad_grad_y = grad_grad_y.mutable_data_ptr();
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_weight = grad_weight.mutable_data_ptr();
  args.shape = problem.shape, args.samples = problem.samples, args.instances = problem.instances;
  args.eps = eps, args.activation = kind, args.negative_slope = negative_slope, args.dtype = dtype;
  if (x.numel() == 0) return;
  std::vector<char> partial = workspace(dtype, problem, true);
  args.workspace = partial.data();
  run_batch_norm_act_double_backward(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "batch_norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!) mean, Tensor(b!) var, "
      "bool training, bool per_sample, bool instance, float eps, int activation, float negative_slope, bool "
      "channels_last, Tensor(c!) y) -> ()");
  m.def(
      "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, "
      "Tensor var, bool training, bool per_sample, bool instance, float eps, int activation, float negative_slope, "
      "bool channels_last, "
      "Tensor(a!) grad_x, Tensor(b!)? grad_residual, Tensor(c!) grad_weight, Tensor(d!) grad_bias) -> ()");
  m.def(
      "batch_norm_act_double_backward(Tensor cotangent, Tensor? weight_cotangent, Tensor? bias_cotangent, "
      "Tensor grad_y, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, bool per_sample, bool instance, "
      "float eps, int activation, float negative_slope, bool channels_last, "
      "Tensor(a!) grad_grad_y, Tensor(b!) grad_x, Tensor(c!) grad_weight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&gencore::forward));
  m.impl("batch_norm_act_backward", TORCH_BOX(&gencore::backward));
  m.impl("batch_norm_act_double_backward", TORCH_BOX(&gencore::double_backward));
}
