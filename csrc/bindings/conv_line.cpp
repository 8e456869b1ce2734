// Convolutions along one line by minimal filtering: eight taps at a stride of 1. What has a stride of its own is one of
// these over interleaved phases (gencore/ops/conv_line.py).
#include <optional>

#include "bindings/conv_arguments.h"

namespace gencore {

namespace {

constexpr int64_t kTaps = 8, kMostPhases = 8, kMostPixels = int64_t{1} << 31;

struct Line {
  int64_t batch, channels, pixels;
};

// A contiguous [batch, planes, numbers], `phases` of whose planes' numbers make a pixel.
Line line_of(const Tensor& tensor, const char* name, int64_t phases) {
  STD_TORCH_CHECK(tensor.dim() == 3, name, " must have 3 dimensions, got ", tensor.dim());
  check_dense(tensor, name, ScalarType::Float, tensor.numel());
  STD_TORCH_CHECK(phases > 0 && phases <= kMostPhases && (phases & (phases - 1)) == 0,
                  "phases must be 1, 2, 4 or 8, got ", phases);
  STD_TORCH_CHECK(tensor.size(2) % phases == 0, name, "'s length must be divisible by its phases");
  STD_TORCH_CHECK(tensor.numel() > 0 && tensor.size(0) < kMostPixels && tensor.size(2) < kMostPixels, name,
                  " is empty or too long");
  return {tensor.size(0), tensor.size(1) * phases, tensor.size(2) / phases};
}

ConvShape shape_of(const Line& in, const Line& out, int64_t padding) {
  STD_TORCH_CHECK(in.batch == out.batch, "the tensors differ in batch size");
  STD_TORCH_CHECK(padding >= 0 && padding < kTaps, "padding must be from 0 to ", kTaps - 1, ", got ", padding);
  return {in.batch,      in.channels, out.channels,    1,        {1, in.pixels, 1}, {1, out.pixels, 1},
          {1, kTaps, 1}, {1, 1, 1},   {0, padding, 0}, {1, 1, 1}};
}

// y[q] = activation(sum over taps t of packed[t] x[q - padding + t] + bias). Whether the result is right: it is not
// where an input is not finite.
bool line_forward(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& slopes, int64_t padding, int64_t x_phases, int64_t y_phases,
                  int64_t activation, double negative_slope, Tensor y) {
  ConvForwardArgs args{};
  const Line in = line_of(x, "x", x_phases), out = line_of(y, "y", y_phases);
  args.shape = shape_of(in, out, padding);
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.x_phases = x_phases;
  args.y_phases = y_phases;
  args.dtype = Dtype::float32;
  args.winograd = Winograd::unit;
  take_packed(packed, args, run_conv_winograd_pack);
  take_epilogue(bias, slopes, ScalarType::Float, activation, negative_slope, args);
  args.gain = 1;
  args.clamp = -1;
  bool finite = true;
  args.finite = &finite;
  run_conv_winograd(args);
  return finite;
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "conv_line_forward(Tensor x, Tensor packed, Tensor? bias, Tensor? slopes, int padding, int x_phases, int "
      "y_phases, int activation, float negative_slope, Tensor(a!) y) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) { m.impl("conv_line_forward", TORCH_BOX(&gencore::line_forward)); }
