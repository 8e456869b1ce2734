// What a call of a convolution has in any number of dimensions, along one line too: the packed weight and the epilogue.
#pragma once

#include <optional>

#include "bindings/check.h"
#include "cpu/conv.h"

namespace gencore {

// Takes over `packed`, which must be as large as pack(arguments) says; shape, dtype, winograd and transposed are set.
template <class Pack>
void take_packed(const Tensor& packed, ConvForwardArgs& args, const Pack& pack) {
  int64_t bytes = 0;
  ConvPackArgs expected{};
  expected.groups = args.shape.groups;
  expected.columns_first = args.winograd == Winograd::none || !args.transposed;
  const int64_t columns = args.shape.out_channels / expected.groups, length = args.shape.in_channels / expected.groups;
  expected.size0 = expected.columns_first ? columns : length;
  expected.size1 = expected.columns_first ? length : columns;
  for (int a = 0; a < 3; a++) expected.kernel[a] = args.shape.kernel[a];
  expected.winograd = args.winograd;
  expected.dtype = args.dtype;
  expected.bytes = &bytes;
  pack(expected);
  check_dense(packed, "packed", ScalarType::Byte, bytes);
  args.packed = packed.const_data_ptr();
}

// Bias and slopes are of `type`.
inline void take_epilogue(const std::optional<Tensor>& bias, const std::optional<Tensor>& slopes, ScalarType type,
                          int64_t activation, double negative_slope, ConvForwardArgs& args) {
  const int64_t channels = args.shape.out_channels;
  if (bias) {
    check_dense(*bias, "bias", type, channels);
    args.bias = bias->const_data_ptr();
  }
  if (slopes) {
    check_dense(*slopes, "slopes", type, channels);
    args.slopes = slopes->const_data_ptr();
  }
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::prelu), "unknown activation");
  args.activation = static_cast<Activation>(activation);
  STD_TORCH_CHECK(args.activation != Activation::prelu || slopes, "prelu needs slopes");
  args.negative_slope = negative_slope;
}

}  // namespace gencore
