#include "cpu/minibatch_stddev.h"

#include "bindings/check.h"

namespace gencore {

namespace {

// Of x's dtype, every element in memory exactly once.
void check_size(const Tensor& tensor, const char* name, const Tensor& x, int64_t numel) {
  check_like(tensor, name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have x's dtype");
  STD_TORCH_CHECK(tensor.numel() == numel, name, " must have ", numel, " elements, got ", tensor.numel());
}

// Everything but the gradient and the result.
MinibatchStddevArgs arguments(const Tensor& x, int64_t batch, int64_t channels, int64_t pixels, int64_t group,
                              int64_t maps, double eps, bool channels_last) {
  STD_TORCH_CHECK(batch >= 1 && channels >= 1 && pixels >= 0, "batch and channels must be positive");
  STD_TORCH_CHECK(group >= 1 && batch % group == 0, "group must divide the batch");
  STD_TORCH_CHECK(maps >= 1 && channels % maps == 0, "maps must divide the channels");
  check_size(x, "x", x, batch * channels * pixels);
  MinibatchStddevArgs args{};
  args.x = x.const_data_ptr();
  args.batch = batch, args.channels = channels, args.pixels = pixels;
  args.group = group, args.maps = maps;
  args.channels_last = channels_last;
  args.eps = eps;
  args.dtype = dtype_of(x, "x");
  return args;
}

void forward(const Tensor& x, int64_t batch, int64_t channels, int64_t pixels, int64_t group, int64_t maps, double eps,
             bool channels_last, Tensor y) {
  MinibatchStddevArgs args = arguments(x, batch, channels, pixels, group, maps, eps, channels_last);
  check_size(y, "y", x, batch * (channels + maps) * pixels);
  args.result = y.mutable_data_ptr();
  if (pixels > 0) run_minibatch_stddev(args);
}

void backward(const Tensor& grad_y, const Tensor& x, int64_t batch, int64_t channels, int64_t pixels, int64_t group,
              int64_t maps, double eps, bool channels_last, Tensor grad_x) {
  MinibatchStddevArgs args = arguments(x, batch, channels, pixels, group, maps, eps, channels_last);
  check_size(grad_y, "grad_y", x, batch * (channels + maps) * pixels);
  check_like(grad_x, "grad_x", x);
  args.grad_y = grad_y.const_data_ptr();
  args.result = grad_x.mutable_data_ptr();
  if (pixels > 0) run_minibatch_stddev_backward(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "minibatch_stddev(Tensor x, int batch, int channels, int pixels, int group, int maps, float eps, "
      "bool channels_last, Tensor(a!) y) -> ()");
  m.def(
      "minibatch_stddev_backward(Tensor grad_y, Tensor x, int batch, int channels, int pixels, int group, int maps, "
      "float eps, bool channels_last, Tensor(a!) grad_x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("minibatch_stddev", TORCH_BOX(&gencore::forward));
  m.impl("minibatch_stddev_backward", TORCH_BOX(&gencore::backward));
}
