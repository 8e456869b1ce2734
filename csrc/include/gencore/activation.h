// The activations that kernels fuse: value and derivative at the pre-activation u, on simd.h's vectors.
#pragma once

#include "gencore/activation_kind.h"
#include "gencore/math.h"

namespace gencore::GENCORE_ISA {

// Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", 2017.
constexpr double kSeluAlpha = 1.6732632423543772, kSeluScale = 1.0507009873554805;

template <Activation activation, class V, class S>
GENCORE_INLINE V activate(V u, S negative_slope) {
  // Written with u < 0, so that NaN passes through.
  if constexpr (activation == Activation::relu) return u < 0.0f ? V{} : u;
  if constexpr (activation == Activation::leaky_relu) return u < 0.0f ? u * negative_slope : u;
  if constexpr (activation == Activation::tanh) return hyperbolic_tangent(u);
  if constexpr (activation == Activation::silu) return u * sigmoid(u);
  if constexpr (activation == Activation::sigmoid) return sigmoid(u);
  if constexpr (activation == Activation::softplus) return softplus(u);
  if constexpr (activation == Activation::elu || activation == Activation::selu) {
    V minus_one;
    exponential_and_minus_one(u, &minus_one);
    if constexpr (activation == Activation::elu) return u > 0.0f ? u : minus_one;
    return (u > 0.0f ? u : minus_one * static_cast<S>(kSeluAlpha)) * static_cast<S>(kSeluScale);
  }
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
  if constexpr (activation == Activation::sigmoid) {
    const V s = sigmoid(u);
    return gradient * s * (1.0f - s);
  }
  if constexpr (activation == Activation::softplus) return gradient * sigmoid(u);
  if constexpr (activation == Activation::elu) return u > 0.0f ? gradient : gradient * exponential(u);
  if constexpr (activation == Activation::selu)
    return gradient * static_cast<S>(kSeluScale) *
           (u > 0.0f ? V{} + 1.0f : exponential(u) * static_cast<S>(kSeluAlpha));
  return gradient;
}

}  // namespace gencore::GENCORE_ISA
