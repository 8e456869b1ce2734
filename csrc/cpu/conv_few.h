// Convolution to one to four output channels (images out of a generator): vectors run along the input channels, where
// the tile of conv_tile.h would leave most lanes idle. Each sum is a vector until the end.
#pragma once

#include "cpu/conv_tile.h"

namespace gencore::GENCORE_ISA {

constexpr int few_rows(int columns) { return columns == 1 ? 12 : columns == 2 ? 8 : columns == 3 ? 5 : 4; }

// sums[pixel * NC + column] for pixels [pixel, pixel + MR).
template <int MR, int NC>
void run_few_tile(const Segment<float>* segments, int64_t count, int64_t pixel, float* sums) {
  vfloat sum[MR][NC];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int c = 0; c < NC; c++) sum[i][c] = vfloat{};
  for (int64_t s = 0; s < count; s++) {
    const Segment<float>& segment = segments[s];
    const int64_t padded = ceil_div(segment.length, kLanes) * kLanes;
    const float* a[MR];
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) a[i] = segment.rows[pixel + i] + segment.offset;
    int64_t k = 0;
    for (; k + kLanes <= segment.length; k += kLanes) {
      vfloat b[NC];
#pragma GCC unroll 4
      for (int c = 0; c < NC; c++) b[c] = load(segment.panel + c * padded + k);
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++) {
        const vfloat value = load(a[i] + k);
#pragma GCC unroll 4
        for (int c = 0; c < NC; c++) sum[i][c] = multiply_add(value, b[c], sum[i][c]);
      }
    }
    if (k < segment.length) {
#pragma GCC unroll 12
      for (int i = 0; i < MR; i++) {
        const vfloat value = load_lanes(a[i] + k, static_cast<int>(segment.length - k));
#pragma GCC unroll 4
        for (int c = 0; c < NC; c++) sum[i][c] = multiply_add(value, load(segment.panel + c * padded + k), sum[i][c]);
      }
    }
  }
#pragma GCC unroll 12
  for (int first = 0; first < MR * NC; first += kLanes) {
    vfloat v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++)
      v[i] = first + i < MR * NC ? sum[(first + i) / NC % MR][(first + i) % NC] : vfloat{};
    fold<1>(v);
    const int n = MR * NC - first < kLanes ? MR * NC - first : kLanes;
    store_lanes(sums + pixel * NC + first, v[0], n);
  }
}

template <int MR, int NC>
void run_few_rows(const Segment<float>* segments, int64_t count, int64_t pixels, float* sums) {
  int64_t pixel = 0;
  for (; pixel + MR <= pixels; pixel += MR) run_few_tile<MR, NC>(segments, count, pixel, sums);
  for (; pixel < pixels; pixel++) run_few_tile<1, NC>(segments, count, pixel, sums);
}

// Scale, bias, residual[pixel][columns] and activation on sums[pixel][columns]; both have room for one vector more.
inline void apply_few(const Epilogue<float>& e, int64_t pixels, int columns, const float* residual, float* sums) {
  if (e.scale)
    for (int64_t pixel = 0; pixel < pixels; pixel++)
      for (int c = 0; c < columns; c++) sums[pixel * columns + c] *= e.scale[pixel][e.scale_channel + c];
  // Bias and slopes repeat every `columns` numbers, out of step with the vectors.
  float bias[kLanes + 4] = {}, slopes[kLanes + 4] = {};
  for (int i = 0; i < kLanes + 4; i++) {
    if (e.bias) bias[i] = e.bias[i % columns];
    if (e.slopes) slopes[i] = e.slopes[i % columns];
  }
  Epilogue<float> each = e;
  for (int64_t i = 0; i < pixels * columns; i += kLanes) {
    const int64_t phase = i % columns;
    each.slopes = slopes + phase;
    vfloat v = load(sums + i) + load(bias + phase);
    if (e.has_residual) v += load(residual + i);
    store(sums + i,
          is_transcendental(e.activation) ? transcendental(v, e.activation) : apply_simple_activation(each, v, 0));
  }
  if (e.moments) add_moments(sums, pixels, columns, *e.moments);
}

inline void run_few(const Segment<float>* segments, int64_t count, int64_t pixels, int columns,
                    const Epilogue<float>& e) {
  switch (columns) {
    case 1:
      run_few_rows<few_rows(1), 1>(segments, count, pixels, e.partial);
      break;
    case 2:
      run_few_rows<few_rows(2), 2>(segments, count, pixels, e.partial);
      break;
    case 3:
      run_few_rows<few_rows(3), 3>(segments, count, pixels, e.partial);
      break;
    default:
      run_few_rows<few_rows(4), 4>(segments, count, pixels, e.partial);
  }
  float* sums = e.partial;
  float* residual = sums + pixels * columns + kLanes;
  if (e.has_residual)
    for (int64_t pixel = 0; pixel < pixels; pixel++)
      std::memcpy(residual + pixel * columns, reinterpret_cast<const char*>(e.out[pixel] + e.channel) + e.residual,
                  columns * sizeof(float));
  apply_few(e, pixels, columns, residual, sums);
  for (int64_t pixel = 0; pixel < pixels; pixel++)
    std::memcpy(e.out[pixel] + e.channel, sums + pixel * columns, columns * sizeof(float));
}

}  // namespace gencore::GENCORE_ISA
