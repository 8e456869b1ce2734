#include "cpu/pixel_norm.h"

#include "bindings/check.h"

namespace gencore {

namespace {

// Everything but the gradient.
PixelNormArgs arguments(const Tensor& x, int64_t outer, int64_t channels, int64_t inner, double eps, Tensor& result,
                        const char* name) {
  check_like(x, "x", x);
  STD_TORCH_CHECK(outer >= 0 && channels >= 0 && inner >= 0 && outer * channels * inner == x.numel(),
                  "outer, channels and inner must be those of x");
  check_like(result, name, x);
  PixelNormArgs args{};
  args.x = x.const_data_ptr();
  args.result = result.mutable_data_ptr();
  args.outer = outer, args.channels = channels, args.inner = inner;
  args.eps = eps;
  args.dtype = dtype_of(x, "x");
  return args;
}

void forward(const Tensor& x, int64_t outer, int64_t channels, int64_t inner, double eps, Tensor y) {
  const PixelNormArgs args = arguments(x, outer, channels, inner, eps, y, "y");
  if (x.numel() > 0) run_pixel_norm(args);
}

void backward(const Tensor& grad_y, const Tensor& x, int64_t outer, int64_t channels, int64_t inner, double eps,
              Tensor grad_x) {
  PixelNormArgs args = arguments(x, outer, channels, inner, eps, grad_x, "grad_x");
  check_like(grad_y, "grad_y", x);
  args.grad_y = grad_y.const_data_ptr();
  if (x.numel() > 0) run_pixel_norm_backward(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def("pixel_norm(Tensor x, int outer, int channels, int inner, float eps, Tensor(a!) y) -> ()");
  m.def(
      "pixel_norm_backward(Tensor grad_y, Tensor x, int outer, int channels, int inner, float eps, "
      "Tensor(a!) grad_x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("pixel_norm", TORCH_BOX(&gencore::forward));
  m.impl("pixel_norm_backward", TORCH_BOX(&gencore::backward));
}
