// The names of the activations that kernels fuse, apart from their maths, for headers that know no instruction set.
#pragma once

#include <cstdint>

namespace gencore {

// The order is that of gencore/ops/_activation.py.
enum class Activation : int32_t { identity, relu, leaky_relu, tanh, silu, sigmoid, prelu, elu, selu, softplus };

}  // namespace gencore

// Runs the statement (for the first five of them) with `kActivation` standing for the run-time `activation`.
#define GENCORE_CASE_ACTIVATION(name, ...)                    \
  case ::gencore::Activation::name: {                         \
    constexpr auto kActivation = ::gencore::Activation::name; \
    __VA_ARGS__;                                              \
    break;                                                    \
  }
#define GENCORE_DISPATCH_ACTIVATION(activation, ...) \
  switch (activation) {                              \
    GENCORE_CASE_ACTIVATION(identity, __VA_ARGS__)   \
    GENCORE_CASE_ACTIVATION(relu, __VA_ARGS__)       \
    GENCORE_CASE_ACTIVATION(leaky_relu, __VA_ARGS__) \
    GENCORE_CASE_ACTIVATION(tanh, __VA_ARGS__)       \
    GENCORE_CASE_ACTIVATION(silu, __VA_ARGS__)       \
    default:                                         \
      break;                                         \
  }

// The same for every activation but prelu.
#define GENCORE_DISPATCH_ANY_ACTIVATION(activation, ...) \
  switch (activation) {                                  \
    GENCORE_CASE_ACTIVATION(identity, __VA_ARGS__)       \
    GENCORE_CASE_ACTIVATION(relu, __VA_ARGS__)           \
    GENCORE_CASE_ACTIVATION(leaky_relu, __VA_ARGS__)     \
    GENCORE_CASE_ACTIVATION(tanh, __VA_ARGS__)           \
    GENCORE_CASE_ACTIVATION(silu, __VA_ARGS__)           \
    GENCORE_CASE_ACTIVATION(sigmoid, __VA_ARGS__)        \
    GENCORE_CASE_ACTIVATION(elu, __VA_ARGS__)            \
    GENCORE_CASE_ACTIVATION(selu, __VA_ARGS__)           \
    GENCORE_CASE_ACTIVATION(softplus, __VA_ARGS__)       \
    default:                                             \
      break;                                             \
  }
