// The activations that kernels fuse: value and derivative at the pre-activation u, on simd.h's vectors.
#pragma once

#include "gencore/activation_kind.h"
#include "gencore/math.h"

namespace gencore::GENCORE_ISA {

template <Activation activation, class V, class S>
GENCORE_INLINE V activate(V u, S negative_slope) {
  // Written with u < 0, so that NaN passes through.
  if constexpr (activation == Activation::relu) return u < 0.0f ? V{} : u;
  if constexpr (activation == Activation::leaky_relu) return u < 0.0f ? u * negative_slope : u;
  if constexpr (activation == Activation::tanh) return hyperbolic_tangent(u);
  if constexpr (activation == Activation::silu) return u * sigmoid(u);
  return u;
}

// gradient * activation'(u); at u = 0 as PyTorch has it.
template <Activation activation, class V, class S>
GENCORE_INLINE V activation_gradient(V gradient, V u, S negative_slope) {
  if constexpr (activation == Activation::relu) return u <= 0.0f ? V{} : gradient;
  if constexpr (activation == Activation::leaky_relu) return u > 0.0f ? gradient : gradient * negative_slope;
  if constexpr (activation == Activation::tanh) {
    const V t = hyperbolic_tangent(u);
    return gradient * (1.0f - t * t);
  }
  if constexpr (activation == Activation::silu) {
    const V s = sigmoid(u);
    return gradient * s * (1.0f + u * (1.0f - s));
  }
  return gradient;
}

}  // namespace gencore::GENCORE_ISA
