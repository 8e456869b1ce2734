#include "cpu/upfirdn2d.h"

#include <vector>

#include "bindings/check.h"

namespace gencore {

namespace {

struct Image {
  int64_t batch, channels, height, width;
};

// [N, C, H, W], dense in the order that `channels_last` says.
Image check_image(const Tensor& tensor, const char* name, bool channels_last) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have four dimensions");
  const Image image{tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
  const int64_t pixel = channels_last ? image.channels : 1, plane = image.height * image.width;
  const int64_t strides[4] = {image.channels * plane, channels_last ? 1 : plane, image.width * pixel, pixel};
  for (int d = 0; d < 4 && tensor.numel() > 0; d++)
    STD_TORCH_CHECK(tensor.size(d) == 1 || tensor.stride(d) == strides[d], name, " must be dense");
  return image;
}

// The taps as they are correlated with the image, gain included: [h][w].
std::vector<double> correlated_taps(const Tensor& f, bool flip_filter, double gain, int64_t& h, int64_t& w) {
  check_cpu(f, "f");
  STD_TORCH_CHECK(f.scalar_type() == ScalarType::Float || f.scalar_type() == ScalarType::Double,
                  "f must be float32 or float64");
  STD_TORCH_CHECK(f.is_contiguous() && f.numel() > 0 && (f.dim() == 1 || f.dim() == 2), "f must be [taps] or [h, w]");
  const int64_t numel = f.numel();
  std::vector<double> given(numel);
  for (int64_t i = 0; i < numel; i++) {
    const int64_t from = flip_filter ? i : numel - 1 - i;
    given[i] = f.scalar_type() == ScalarType::Float ? static_cast<const float*>(f.const_data_ptr())[from]
                                                    : static_cast<const double*>(f.const_data_ptr())[from];
  }
  h = f.size(0);
  w = f.dim() == 1 ? h : f.size(1);
  std::vector<double> taps(h * w);
  for (int64_t i = 0; i < h * w; i++) taps[i] = gain * (f.dim() == 1 ? given[i / w] * given[i % w] : given[i]);
  return taps;
}

const void* optional_dense(const std::optional<Tensor>& tensor, const char* name, ScalarType type, int64_t numel) {
  if (!tensor) return nullptr;
  check_dense(*tensor, name, type, numel);
  return tensor->const_data_ptr();
}

void forward(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
             int64_t pad_x, int64_t pad_y, bool flip_filter, double gain, bool fused,
             const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& bias,
             double slope, double act_gain, double clamp, bool channels_last, Tensor y) {
  Upfirdn2dArgs args{};
  args.dtype = dtype_of(x, "x");
  const ScalarType type = compute_type(x.scalar_type());
  const Image in = check_image(x, "x", channels_last), out = check_image(y, "y", channels_last);
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), "y must have x's dtype");
  STD_TORCH_CHECK(in.batch == out.batch && in.channels == out.channels, "y must have x's batch and channels");
  STD_TORCH_CHECK(up_x > 0 && up_y > 0 && down_x > 0 && down_y > 0, "up and down must be at least 1");
  const std::vector<double> taps = correlated_taps(f, flip_filter, gain, args.filter_height, args.filter_width);
  args.epilogue = {fused,       optional_dense(scale, "scale", type, in.batch * in.channels),
                   nullptr,     optional_dense(bias, "bias", type, in.channels),
                   in.channels, 0,
                   slope,       act_gain,
                   clamp};
  if (noise) {
    const int64_t pixels = out.height * out.width;
    const bool shared = noise->numel() == pixels;
    args.epilogue.noise = optional_dense(noise, "noise", type, shared ? pixels : in.batch * pixels);
    args.epilogue.noise_batch_stride = shared ? 0 : pixels;
  }
  if (y.numel() == 0) return;
  STD_TORCH_CHECK(x.numel() > 0, "x must not be empty");
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.images = channels_last ? in.batch : in.batch * in.channels;
  args.channels = channels_last ? in.channels : 1;
  args.in_height = in.height, args.in_width = in.width;
  args.out_height = out.height, args.out_width = out.width;
  args.taps = taps.data();
  args.up_x = up_x, args.up_y = up_y, args.down_x = down_x, args.down_y = down_y;
  args.pad_x = pad_x, args.pad_y = pad_y;
  run_upfirdn2d(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int pad_x, int pad_y, "
      "bool flip_filter, float gain, bool fused, Tensor? scale, Tensor? noise, Tensor? bias, float slope, "
      "float act_gain, float clamp, bool channels_last, Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&gencore::forward)); }
