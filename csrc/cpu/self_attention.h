// softmax(scale Q K^T) V by blocks, forward and backward, without the matrix of weights.
//
// The forward leaves two numbers a query for the backward: `peaks`, which was subtracted from the scores, and
// `inverse_totals`, 1 / the sum of exp(score - peak) over the keys. Their logarithm in one number would lose digits
// where scores are large.
#pragma once

#include <cstdint>

#include "gencore/dtype.h"
#include "gencore/isa.h"

namespace gencore {

// [batch, rows, columns] with strides in elements; the row or the column stride is 1.
struct AttentionMatrix {
  void* data;
  int64_t batch_stride, row_stride, column_stride;
};

struct SelfAttentionShape {
  int64_t batch, queries, keys, width, value_width;
};

struct SelfAttentionArgs {
  AttentionMatrix query, key, value;
  AttentionMatrix out;
  void *peaks, *inverse_totals;  // [batch, queries] of the compute type
  SelfAttentionShape shape;
  double scale;
  Dtype dtype;
};

struct SelfAttentionBackwardArgs {
  AttentionMatrix grad_out, query, key, value, out;
  const void *peaks, *inverse_totals;
  AttentionMatrix grad_query, grad_key, grad_value;
  SelfAttentionShape shape;
  double scale;
  Dtype dtype;
};

}  // namespace gencore

GENCORE_DECLARE_KERNEL(self_attention, const SelfAttentionArgs&)
GENCORE_DECLARE_KERNEL(self_attention_backward, const SelfAttentionBackwardArgs&)
