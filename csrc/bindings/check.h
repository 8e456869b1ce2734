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

}  // namespace gencore
