// What the bindings share: tensors to pointers, with every size and dtype checked, so that no kernel can be made to
// read out of bounds even by a direct call of torch.ops.gencore_c.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>

#include "gencore/dtype.h"

namespace gencore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
  return Dtype::float32;
}

inline ScalarType compute_type(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

inline void check_cpu(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
}

// A contiguous CPU tensor of `type` with exactly `numel` elements.
inline void check_dense(const Tensor& tensor, const char* name, ScalarType type, int64_t numel) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.numel() == numel, name, " must have ", numel, " elements, got ", tensor.numel());
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// x's dtype, every element in memory exactly once, in x's order: which order that is, the caller has seen to.
inline void check_like(const Tensor& tensor, const char* name, const Tensor& x) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have x's dtype");
  STD_TORCH_CHECK(tensor.dim() == x.dim(), name, " must have x's shape");
  int64_t expected = 1;
  for (int64_t d = 0; d < x.dim(); d++) {
    STD_TORCH_CHECK(tensor.size(d) == x.size(d), name, " must have x's shape");
    STD_TORCH_CHECK(tensor.size(d) == 1 || tensor.stride(d) == x.stride(d), name, " must have x's strides");
    expected += (x.size(d) - 1) * x.stride(d);
  }
  STD_TORCH_CHECK(x.numel() == 0 || expected == x.numel(), name, " must be dense");
}

}  // namespace gencore
