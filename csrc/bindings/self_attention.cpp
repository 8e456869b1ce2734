#include "cpu/self_attention.h"

#include "bindings/check.h"

namespace gencore {

namespace {

// [batch, rows, columns] of x's dtype, densely along its rows or its columns. A dimension of one element may have any
// stride.
AttentionMatrix matrix_of(const Tensor& tensor, const char* name, ScalarType type, int64_t batch, int64_t rows,
                          int64_t columns) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == batch && tensor.size(1) == rows && tensor.size(2) == columns,
                  name, " has the wrong shape");
  AttentionMatrix matrix{const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
                         tensor.stride(2)};
  if (columns == 1) matrix.column_stride = 1;
  if (rows == 1 && matrix.column_stride != 1) matrix.row_stride = 1;
  STD_TORCH_CHECK(tensor.numel() == 0 || matrix.row_stride == 1 || matrix.column_stride == 1, name,
                  " must be dense along its rows or its columns");
  return matrix;
}

// One that is written: no element may share its memory with another.
AttentionMatrix result_of(const Tensor& tensor, const char* name, ScalarType type, int64_t batch, int64_t rows,
                          int64_t columns) {
  const AttentionMatrix matrix = matrix_of(tensor, name, type, batch, rows, columns);
  int64_t extent = 1;
  for (int64_t d = 0; d < 3; d++) extent += (tensor.size(d) - 1) * tensor.stride(d);
  STD_TORCH_CHECK(tensor.numel() == 0 || extent == tensor.numel(), name, " must be dense");
  return matrix;
}

SelfAttentionShape shape_of(const Tensor& query, const Tensor& key, const Tensor& value) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3, "query, key and value must be 3-d");
  return {query.size(0), query.size(1), key.size(1), query.size(2), value.size(2)};
}

void forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale, Tensor out, Tensor peaks,
             Tensor inverse_totals) {
  const Dtype dtype = dtype_of(query, "query");
  const ScalarType type = query.scalar_type();
  const SelfAttentionShape s = shape_of(query, key, value);
  check_dense(peaks, "peaks", compute_type(type), s.batch * s.queries);
  check_dense(inverse_totals, "inverse_totals", compute_type(type), s.batch * s.queries);
  const SelfAttentionArgs args{matrix_of(query, "query", type, s.batch, s.queries, s.width),
                               matrix_of(key, "key", type, s.batch, s.keys, s.width),
                               matrix_of(value, "value", type, s.batch, s.keys, s.value_width),
                               result_of(out, "out", type, s.batch, s.queries, s.value_width),
                               peaks.mutable_data_ptr(),
                               inverse_totals.mutable_data_ptr(),
                               s,
                               scale,
                               dtype};
  if (s.batch * s.queries > 0) run_self_attention(args);
}

void backward(const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out,
              const Tensor& peaks, const Tensor& inverse_totals, double scale, Tensor grad_query, Tensor grad_key,
              Tensor grad_value) {
  const Dtype dtype = dtype_of(query, "query");
  const ScalarType type = query.scalar_type();
  const SelfAttentionShape s = shape_of(query, key, value);
  check_dense(peaks, "peaks", compute_type(type), s.batch * s.queries);
  check_dense(inverse_totals, "inverse_totals", compute_type(type), s.batch * s.queries);
  const SelfAttentionBackwardArgs args{matrix_of(grad_out, "grad_out", type, s.batch, s.queries, s.value_width),
                                       matrix_of(query, "query", type, s.batch, s.queries, s.width),
                                       matrix_of(key, "key", type, s.batch, s.keys, s.width),
                                       matrix_of(value, "value", type, s.batch, s.keys, s.value_width),
                                       matrix_of(out, "out", type, s.batch, s.queries, s.value_width),
                                       peaks.const_data_ptr(),
                                       inverse_totals.const_data_ptr(),
                                       result_of(grad_query, "grad_query", type, s.batch, s.queries, s.width),
                                       result_of(grad_key, "grad_key", type, s.batch, s.keys, s.width),
                                       result_of(grad_value, "grad_value", type, s.batch, s.keys, s.value_width),
                                       s,
                                       scale,
                                       dtype};
  STD_TORCH_CHECK(s.batch * s.queries * s.keys > 0, "there must be queries and keys");
  run_self_attention_backward(args);
}

}  // namespace

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) {
  m.def(
      "self_attention(Tensor query, Tensor key, Tensor value, float scale, Tensor(a!) out, Tensor(b!) peaks, "
      "Tensor(c!) inverse_totals) -> ()");
  m.def(
      "self_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor peaks, "
      "Tensor inverse_totals, float scale, Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) grad_value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CPU, m) {
  m.impl("self_attention", TORCH_BOX(&gencore::forward));
  m.impl("self_attention_backward", TORCH_BOX(&gencore::backward));
}
