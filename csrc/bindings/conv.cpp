#include "cpu/conv.h"

#include <cstring>
#include <vector>

#include "bindings/conv_arguments.h"

namespace gencore {

namespace {

using Sizes = std::vector<int64_t>;

constexpr int64_t kMostPieces = 64, kPieceBytes = 64;  // of a fingerprint

// Whether the strides are those of a dense [N, C, spatial...] tensor: contiguous, or channels_last. Dimensions of size
// 1 have no say.
bool has_layout(const Tensor& tensor, bool channels_last) {
  const int64_t dims = tensor.dim();
  int64_t expected = 1;
  for (int64_t i = dims - 1; i >= 0; i--) {
    // channels_last order, innermost first: C, then the spatial dimensions from the last, then N.
    const int64_t d = !channels_last || i == 0 ? i : i == dims - 1 ? 1 : i + 1;
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

struct Image {
  bool channels_last;
  int64_t batch, channels, size[3];
};

Image image_of(const Tensor& tensor, const char* name, ScalarType type) {
  check_cpu(tensor, name);
  const int64_t dims = tensor.dim();
  STD_TORCH_CHECK(dims >= 2 && dims <= 5, name, " must have 2 to 5 dimensions, got ", dims);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  Image image{has_layout(tensor, true), tensor.size(0), tensor.size(1), {1, 1, 1}};
  STD_TORCH_CHECK(image.channels_last || has_layout(tensor, false), name, " must be contiguous or channels_last");
  for (int64_t d = 2; d < dims; d++) image.size[3 - dims + d] = tensor.size(d);
  return image;
}

void fill(int64_t (&to)[3], const Sizes& from, const char* name, int64_t least, int64_t otherwise) {
  STD_TORCH_CHECK(from.size() <= 3, name, " must have at most 3 numbers");
  for (int a = 0; a < 3; a++) to[a] = otherwise;
  for (size_t i = 0; i < from.size(); i++) {
    STD_TORCH_CHECK(from[i] >= least && from[i] < (int64_t{1} << 31), name, " is out of range");
    to[3 - from.size() + i] = from[i];
  }
}

ConvShape shape_of(const Image& in, const Image& out, int64_t groups, const Sizes& kernel, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation) {
  STD_TORCH_CHECK(in.batch == out.batch, "the tensors differ in batch size");
  STD_TORCH_CHECK(groups > 0 && in.channels % groups == 0 && out.channels % groups == 0,
                  "channels must be divisible by groups");
  ConvShape shape{in.batch, in.channels, out.channels, groups, {}, {}, {}, {}, {}, {}};
  for (int a = 0; a < 3; a++) {
    shape.in_size[a] = in.size[a];
    shape.out_size[a] = out.size[a];
    STD_TORCH_CHECK(in.size[a] < (int64_t{1} << 31) && out.size[a] < (int64_t{1} << 31), "an image side is too long");
  }
  STD_TORCH_CHECK(in.batch < (int64_t{1} << 31), "the batch is too large");
  fill(shape.kernel, kernel, "kernel", 1, 1);
  fill(shape.stride, stride, "stride", 1, 1);
  fill(shape.padding, padding, "padding", -(int64_t{1} << 30), 0);
  fill(shape.dilation, dilation, "dilation", 1, 1);
  return shape;
}

Dtype conv_dtype(const Tensor& tensor, const char* name) {
  const Dtype dtype = dtype_of(tensor, name);
  STD_TORCH_CHECK(dtype != Dtype::float16, name, " must be float32, float64 or bfloat16");
  return dtype;
}

Winograd winograd_of(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= static_cast<int64_t>(Winograd::unit_inexact), "unknown winograd scheme ",
                  value);
  return static_cast<Winograd>(value);
}

bool is_strided(Winograd scheme) { return scheme == Winograd::strided || scheme == Winograd::strided_large; }

ConvPackArgs pack_args(const Tensor& weight, int64_t groups, bool columns_first, int64_t winograd, int64_t* bytes) {
  check_cpu(weight, "weight");
  const int64_t dims = weight.dim();
  STD_TORCH_CHECK(dims >= 2 && dims <= 5, "weight must have 2 to 5 dimensions, got ", dims);
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0, "weight's first dimension must be divisible by groups");
  ConvPackArgs args{};
  args.weight = weight.const_data_ptr();
  args.groups = groups;
  args.size0 = weight.size(0) / groups;
  args.size1 = weight.size(1);
  args.stride0 = weight.stride(0);
  args.stride1 = weight.stride(1);
  for (int a = 0; a < 3; a++) args.kernel[a] = 1, args.kernel_stride[a] = 0;
  for (int64_t d = 2; d < dims; d++) {
    args.kernel[3 - dims + d] = weight.size(d);
    args.kernel_stride[3 - dims + d] = weight.stride(d);
  }
  args.columns_first = columns_first;
  args.winograd = winograd_of(winograd);
  args.dtype = conv_dtype(weight, "weight");
  args.bytes = bytes;
  return args;
}

void check_large(Winograd scheme, int64_t side, bool transposed) {
  STD_TORCH_CHECK(scheme != Winograd::strided_large || side == 4 || transposed,
                  "at a stride of 2, winograd's large tiles take 4x4 or transposed 3x3");
}

// For conv_winograd, or where the scheme is none for conv_forward.
void run_pack(const ConvPackArgs& args) {
  if (args.winograd == Winograd::none) return run_conv_pack(args);
  const int64_t side = args.kernel[1];
  const bool square = args.kernel[2] == side && (side == 3 || (side == 4 && is_strided(args.winograd)));
  const bool line = args.kernel[2] == 1 && side == 8 && args.winograd == Winograd::unit && args.columns_first;
  STD_TORCH_CHECK(
      args.dtype == Dtype::float32 && args.groups == 1 && args.kernel[0] <= kMostDepth && (square || line),
      "winograd takes float32 filters of 3x3 at strides of 1 and 2, of 4x4 at 2, and of 8x1 at 1, without groups, "
      "and at most 8 taps along the depth");
  check_large(args.winograd, side, !args.columns_first);
  run_conv_winograd_pack(args);
}

int64_t packed_bytes(const Tensor& weight, int64_t groups, bool columns_first, int64_t winograd) {
  int64_t bytes = 0;
  run_pack(pack_args(weight, groups, columns_first, winograd, &bytes));
  return bytes;
}

void pack(const Tensor& weight, int64_t groups, bool columns_first, int64_t winograd, Tensor packed) {
  int64_t bytes = 0;
  ConvPackArgs args = pack_args(weight, groups, columns_first, winograd, &bytes);
  run_pack(args);
  check_dense(packed, "packed", ScalarType::Byte, bytes);
  args.packed = packed.mutable_data_ptr();
  run_pack(args);
}

void check_winograd(const ConvShape& s, Dtype dtype, Winograd scheme, bool transposed) {
  STD_TORCH_CHECK(dtype == Dtype::float32 && s.groups == 1 && s.dilation[0] == 1 && s.dilation[1] == 1 &&
                      s.dilation[2] == 1 && s.kernel[0] <= kMostDepth,
                  "winograd takes float32 images, without groups and dilation, and at most 8 taps along the depth");
  const int64_t side = s.kernel[1], step = s.stride[1];
  bool fits = side == s.kernel[2] && step == s.stride[2] &&
              ((side == 3 && (step == 1 || step == 2)) || (side == 4 && step == 2));
  for (int a = 1; a < 3; a++) {
    if (side == 4) fits &= s.padding[a] == 1;
    if (side == 3 && step == 2 && transposed) fits &= s.padding[a] == 0;
  }
  STD_TORCH_CHECK(
      fits,
      "winograd takes 3x3 at a stride of 1 or 2 (transposed, at 2 without padding), and 4x4 at a stride of 2 "
      "and a padding of 1");
  STD_TORCH_CHECK(is_strided(scheme) == (step == 2), "this winograd scheme has another stride");
  check_large(scheme, side, transposed);
}

// Whether the result is right: winograd's is not where an input is not finite.
bool forward(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& scale,
             const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
             const std::optional<Tensor>& slopes, int64_t groups, const Sizes& kernel, const Sizes& stride,
             const Sizes& padding, const Sizes& dilation, bool transposed, int64_t activation, double negative_slope,
             int64_t winograd, Tensor y, std::optional<Tensor> mean, std::optional<Tensor> var,
             const std::optional<Tensor>& style, const std::optional<Tensor>& noise, double gain, double clamp) {
  const ScalarType type = x.scalar_type();
  ConvForwardArgs args{};
  args.dtype = conv_dtype(x, "x");
  const Image in = image_of(x, "x", type), out = image_of(y, "y", type);
  args.shape = shape_of(in, out, groups, kernel, stride, padding, dilation);
  args.transposed = transposed;
  args.x = x.const_data_ptr();
  args.x_channels_last = in.channels_last;
  args.y = y.mutable_data_ptr();
  args.y_channels_last = out.channels_last;
  args.winograd = winograd_of(winograd);
  take_packed(packed, args, run_pack);
  if (scale) {
    args.scale_per_sample = scale->dim() == 2;
    check_dense(*scale, "scale", compute_type(type), args.scale_per_sample ? out.batch * out.channels : out.channels);
    args.scale = scale->const_data_ptr();
  }
  if (residual) {
    const Image image = image_of(*residual, "residual", type);
    STD_TORCH_CHECK(image.batch == out.batch && image.channels == out.channels && image.size[0] == out.size[0] &&
                        image.size[1] == out.size[1] && image.size[2] == out.size[2],
                    "residual must have y's shape");
    STD_TORCH_CHECK(has_layout(*residual, out.channels_last), "residual must have y's layout");
    args.residual = residual->const_data_ptr();
  }
  take_epilogue(bias, slopes, compute_type(type), activation, negative_slope, args);
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "mean and var go together");
  if (mean) {
    STD_TORCH_CHECK(args.activation == Activation::identity, "there are no statistics after an activation");
    check_dense(*mean, "mean", compute_type(type), out.channels);
    check_dense(*var, "var", compute_type(type), out.channels);
    args.mean = mean->mutable_data_ptr();
    args.var = var->mutable_data_ptr();
  }
  const int64_t pixels = out.size[0] * out.size[1] * out.size[2];
  if (style) {
    check_dense(*style, "style", compute_type(type), in.batch * in.channels);
    args.style = style->const_data_ptr();
  }
  if (noise) {
    args.noise_per_sample = noise->numel() != pixels;
    check_dense(*noise, "noise", compute_type(type), args.noise_per_sample ? out.batch * pixels : pixels);
    args.noise = noise->const_data_ptr();
  }
  args.gain = gain;
  args.clamp = clamp;
  STD_TORCH_CHECK(args.winograd != Winograd::none || (!style && !noise && gain == 1 && clamp < 0),
                  "style, noise, gain and clamp go with winograd alone");
  bool finite = true;
  if (y.numel() == 0) return finite;
  if (args.winograd == Winograd::none) {
    run_conv_forward(args);
    return finite;
  }
  check_winograd(args.shape, args.dtype, args.winograd, transposed);
  STD_TORCH_CHECK(!mean, "winograd gathers no statistics");
  args.finite = &finite;
  run_conv_winograd(args);
  return finite;
}

void weight_gradient(const Tensor& dense, const Tensor& gathered, int64_t groups, const Sizes& kernel,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t winograd,
                     Tensor grad_weight) {
  const ScalarType type = dense.scalar_type();
  ConvWeightGradientArgs args{};
  args.dtype = conv_dtype(dense, "dense");
  const Image out = image_of(dense, "dense", type), in = image_of(gathered, "gathered", type);
  args.shape = shape_of(in, out, groups, kernel, stride, padding, dilation);
  args.dense = dense.const_data_ptr();
  args.gathered = gathered.const_data_ptr();
  args.dense_channels_last = out.channels_last;
  args.gathered_channels_last = in.channels_last;
  const int64_t taps = args.shape.kernel[0] * args.shape.kernel[1] * args.shape.kernel[2];
  check_dense(grad_weight, "grad_weight", compute_type(type), out.channels * (in.channels / groups) * taps);
  args.weight_gradient = grad_weight.mutable_data_ptr();
  STD_TORCH_CHECK(dense.numel() > 0 && gathered.numel() > 0, "the tensors must not be empty");
  args.winograd = winograd_of(winograd);
  if (args.winograd == Winograd::none) return run_conv_weight_gradient(args);
  check_winograd(args.shape, args.dtype, args.winograd, false);
  STD_TORCH_CHECK(args.winograd != Winograd::unit_inexact, "weight gradients have no inexact winograd");
  run_conv_winograd_weight_gradient(args);
}

// Of all bytes, or of `pieces` of 64 bytes, spread out evenly.
int64_t fingerprint_of(const Tensor& tensor, int64_t pieces) {
  check_cpu(tensor, "tensor");
  STD_TORCH_CHECK(pieces >= 0 && pieces <= kMostPieces, "pieces must be from 0 to ", kMostPieces);
  // Any dense layout will do: the bytes from the first element to the last are those of the tensor.
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); d++) last += (tensor.size(d) - 1) * tensor.stride(d);
  if (tensor.numel() == 0) return 0;
  const char* data = static_cast<const char*>(tensor.const_data_ptr());
  const int64_t bytes = (last + 1) * static_cast<int64_t>(tensor.element_size());
  uint64_t result = 0;
  if (pieces < 2 || bytes <= pieces * kPieceBytes) {
    run_fingerprint({data, bytes, &result});
    return static_cast<int64_t>(result);
  }
  char buffer[kMostPieces * kPieceBytes];
  for (int64_t i = 0; i < pieces; i++)
    std::memcpy(buffer + i * kPieceBytes, data + (bytes - kPieceBytes) * i / (pieces - 1), kPieceBytes);
  run_fingerprint({buffer, pieces * kPieceBytes, &result});
  return static_cast<int64_t>(result);
}

int64_t fingerprint_of_all(const std::vector<Tensor>& tensors, int64_t pieces) {
  uint64_t result = 0;
  for (const Tensor& tensor : tensors)
    result = (result ^ static_cast<uint64_t>(fingerprint_of(tensor, pieces))) * 0x9E3779B97F4A7C15u;
  return static_cast<int64_t>(result);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def("conv_packed_bytes(Tensor weight, int groups, bool columns_first, int winograd) -> int");
  m.def("conv_pack(Tensor weight, int groups, bool columns_first, int winograd, Tensor(a!) packed) -> ()");
  m.def(
      "conv_forward(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, Tensor? residual, Tensor? slopes, int "
      "groups, "
      "int[] kernel, int[] stride, int[] padding, int[] dilation, bool transposed, int activation, float "
      "negative_slope, "
      "int winograd, Tensor(a!) y, Tensor(b!)? mean=None, Tensor(c!)? var=None, Tensor? style=None, Tensor? "
      "noise=None, float gain=1.0, float clamp=-1.0) -> bool");
  m.def(
      "conv_weight_gradient(Tensor dense, Tensor gathered, int groups, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation, int winograd, Tensor(a!) grad_weight) -> ()");
  m.def("fingerprint(Tensor tensor, int pieces) -> int");
  m.def("fingerprints(Tensor[] tensors, int pieces) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("conv_packed_bytes", TORCH_BOX(&gencore::packed_bytes));
  m.impl("conv_pack", TORCH_BOX(&gencore::pack));
  m.impl("conv_forward", TORCH_BOX(&gencore::forward));
  m.impl("conv_weight_gradient", TORCH_BOX(&gencore::weight_gradient));
  m.impl("fingerprint", TORCH_BOX(&gencore::fingerprint_of));
  m.impl("fingerprints", TORCH_BOX(&gencore::fingerprint_of_all));
}
