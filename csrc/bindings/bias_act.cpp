#include "cpu/bias_act.h"

#include "bindings/check.h"

namespace gencore {

namespace {

const void* optional_dense(const std::optional<Tensor>& tensor, const char* name, ScalarType type, int64_t numel) {
  if (!tensor) return nullptr;
  check_dense(*tensor, name, type, numel);
  return tensor->const_data_ptr();
}

void* optional_result(std::optional<Tensor>& tensor, const char* name, ScalarType type, int64_t numel) {
  if (!tensor) return nullptr;
  check_dense(*tensor, name, type, numel);
  return tensor->mutable_data_ptr();
}

// Everything but y.
BiasActArgs arguments(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& noise,
                      const std::optional<Tensor>& bias, int64_t batch, int64_t channels, int64_t pixels,
                      int64_t activation, double alpha, double gain, double clamp, bool channels_last) {
  check_like(x, "x", x);
  const ScalarType type = compute_type(x.scalar_type());
  STD_TORCH_CHECK(batch >= 0 && channels >= 0 && pixels >= 0 && batch * channels * pixels == x.numel(),
                  "batch, channels and pixels must be those of x");
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::softplus) &&
                      activation != static_cast<int64_t>(Activation::prelu),
                  "unknown activation ", activation);
  BiasActArgs args{};
  args.x = x.const_data_ptr();
  args.scale = optional_dense(scale, "scale", type, batch * channels);
  args.bias = optional_dense(bias, "bias", type, channels);
  if (noise) {
    const bool shared = noise->numel() == pixels;
    args.noise = optional_dense(noise, "noise", type, shared ? pixels : batch * pixels);
    args.noise_batch_stride = shared ? 0 : pixels;
  }
  args.shape = {batch, channels, pixels, channels_last};
  args.activation = static_cast<Activation>(activation);
  args.alpha = alpha, args.gain = gain, args.clamp = clamp;
  args.dtype = dtype_of(x, "x");
  return args;
}

void forward(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& noise,
             const std::optional<Tensor>& bias, int64_t batch, int64_t channels, int64_t pixels, int64_t activation,
             double alpha, double gain, double clamp, bool channels_last, Tensor y) {
  BiasActArgs args =
      arguments(x, scale, noise, bias, batch, channels, pixels, activation, alpha, gain, clamp, channels_last);
  check_like(y, "y", x);
  if (x.numel() == 0) return;
  args.y = y.mutable_data_ptr();
  run_bias_act(args);
}

void backward(const Tensor& grad_y, const Tensor& x, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& noise, const std::optional<Tensor>& bias, int64_t batch, int64_t channels,
              int64_t pixels, int64_t activation, double alpha, double gain, double clamp, bool channels_last,
              Tensor grad_x, std::optional<Tensor> grad_scale, std::optional<Tensor> grad_noise,
              std::optional<Tensor> grad_bias) {
  BiasActBackwardArgs args{};
  args.forward =
      arguments(x, scale, noise, bias, batch, channels, pixels, activation, alpha, gain, clamp, channels_last);
  check_like(grad_y, "grad_y", x);
  check_like(grad_x, "grad_x", x);
  const ScalarType type = compute_type(x.scalar_type());
  args.grad_scale = optional_result(grad_scale, "grad_scale", type, batch * channels);
  args.grad_noise = optional_result(grad_noise, "grad_noise", type, batch * pixels);
  args.grad_bias = optional_result(grad_bias, "grad_bias", type, channels);
  if (x.numel() == 0) return;
  args.grad_y = grad_y.const_data_ptr();
  args.grad_x = grad_x.mutable_data_ptr();
  run_bias_act_backward(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "bias_act(Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, int batch, int channels, int pixels, "
      "int activation, float alpha, float gain, float clamp, bool channels_last, Tensor(a!) y) -> ()");
  m.def(
      "bias_act_backward(Tensor grad_y, Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, int batch, "
      "int channels, int pixels, int activation, float alpha, float gain, float clamp, bool channels_last, "
      "Tensor(a!) grad_x, Tensor(b!)? grad_scale, Tensor(c!)? grad_noise, Tensor(d!)? grad_bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&gencore::forward));
  m.impl("bias_act_backward", TORCH_BOX(&gencore::backward));
}
