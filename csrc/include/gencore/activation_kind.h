// The names of the activations that kernels fuse, apart from their maths, for headers that know no instruction set.
#pragma once

#include <cstdint>

namespace gencore {

// The order is that of gencore/ops/_activation.py.
enum class Activation : int32_t { identity, relu, leaky_relu, tanh, silu, sigmoid, prelu };

}  // namespace gencore

// Runs the statement (for all but sigmoid and prelu) with `kActivation` standing for the run-time `activation`.
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
