// The element types that the CPU kernels take, and the call that turns a run-time dtype into a template argument.
#pragma once

#include <cstdint>

namespace gencore {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

// Bytes of an element. (Always inlined: see scratch.h.)
inline __attribute__((always_inline)) int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}
// Of what is computed in.
inline __attribute__((always_inline)) int64_t compute_size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

// Storage only: kernels convert to float on load and round to nearest even on store (simd.h).
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What is computed in: double for double, float for all the others.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace gencore

// Runs the statement with `scalar_t` standing for the C++ type of `dtype`.
#define GENCORE_DISPATCH_DTYPE(dtype, ...)  \
  switch (dtype) {                          \
    case ::gencore::Dtype::float32: {       \
      using scalar_t = float;               \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case ::gencore::Dtype::float64: {       \
      using scalar_t = double;              \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case ::gencore::Dtype::bfloat16: {      \
      using scalar_t = ::gencore::bfloat16; \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case ::gencore::Dtype::float16: {       \
      using scalar_t = ::gencore::float16;  \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
  }
