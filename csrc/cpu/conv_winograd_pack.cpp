// The filters of conv_winograd.h, transformed.
#include "cpu/conv_winograd.h"

namespace gencore::GENCORE_ISA {

namespace {

// U of one row of the reduction, from its taps of `width` columns.
template <class R, class S>
GENCORE_INLINE void transform_filter(const float* const* taps, int64_t width, float* panel, int64_t pair_stride) {
  for (int64_t n = 0; n < width; n += kLanes) {
    vfloat half[R::kPairs][S::kTaps];
    for (int j = 0; j < S::kTaps; j++) {
      vfloat g[R::kTaps], u[R::kPairs];
      for (int i = 0; i < R::kTaps; i++) g[i] = load(taps[i * S::kTaps + j] + n);
      R::filter(g, u);
      for (int i = 0; i < R::kPairs; i++) half[i][j] = u[i];
    }
    for (int i = 0; i < R::kPairs; i++) {
      vfloat u[S::kPairs];
      S::filter(half[i], u);
      for (int j = 0; j < S::kPairs; j++) store(panel + (i * S::kPairs + j) * pair_stride + n, u[j]);
    }
  }
}

constexpr int64_t kPackRows = 16;

// The taps of `columns` columns, for `rows` rows of the reduction: taps[row][tap] are to.at(row, tap), each `width`
// long.
struct Taps {
  float* base;
  int64_t row_stride, tap_stride;
  const float* at(int64_t row, int64_t tap) const { return base + row * row_stride + tap * tap_stride; }
};

template <int height, int side>
Taps gather_taps(const ConvPackArgs& args, const float* from, int64_t column_stride, int64_t length_stride,
                 int64_t columns, int64_t rows, int64_t width, float* to) {
  constexpr int number = height * side;
  const int64_t down = args.kernel_stride[1], right = args.kernel_stride[2];
  if (columns < width) std::memset(to, 0, number * kPackRows * width * sizeof(float));
  if (right == 1 && down == side) {
    for (int64_t k = 0; k < rows; k++)
      transpose(from + k * length_stride, column_stride, to + k * number * width, width, columns, number);
    return {to, number * width, width};
  }
  const Taps taps{to, width, kPackRows * width};
  for (int64_t t = 0; t < number; t++) {
    const float* tap = from + t / side * down + t % side * right;
    float* panel = to + t * taps.tap_stride;
    if (length_stride == 1) {
      transpose(tap, column_stride, panel, width, columns, rows);
      continue;
    }
    for (int64_t k = 0; k < rows; k++)
      for (int64_t n = 0; n < columns; n++) panel[k * width + n] = tap[n * column_stride + k * length_stride];
  }
  return taps;
}

template <class R, class S>
void pack(const ConvPackArgs& args) {
  constexpr int number = R::kTaps * S::kTaps, pairs = R::kPairs * S::kPairs;
  constexpr int64_t local_size = number * kPackRows * WinogradLayout::block;
  const WinogradLayout layout{args.columns_first ? args.size0 : args.size1,
                              args.columns_first ? args.size1 : args.size0, args.kernel[0] * pairs};
  *args.bytes = layout.size() * static_cast<int64_t>(sizeof(float));
  if (!args.packed) return;
  const int64_t column_stride = args.columns_first ? args.stride0 : args.stride1;
  const int64_t length_stride = args.columns_first ? args.stride1 : args.stride0;
  const int64_t cuts = ceil_div(layout.length, kPackRows);
  // A transposed 3x3 at a stride of 1 is the convolution with the filter turned round.
  const bool turned = R::kStep == R::kOutputs && !args.columns_first;
  parallel_for(0, layout.blocks() * cuts * args.kernel[0], 1, [&](int64_t begin, int64_t end) {
    float* local = static_cast<float*>(scratch(Scratch::worker, local_size * sizeof(float)));
    for (int64_t task = begin; task < end; task++) {
      const int64_t depth = task % args.kernel[0], cut = task / args.kernel[0] % cuts, b = task / args.kernel[0] / cuts;
      const int64_t width = layout.vectors(b) * kLanes, column = b * WinogradLayout::block;
      const int64_t first = cut * kPackRows, rows = smaller(kPackRows, layout.length - first);
      const float* from = static_cast<const float*>(args.weight) + column * column_stride + first * length_stride +
                          depth * args.kernel_stride[0];
      const Taps taps = gather_taps<R::kTaps, S::kTaps>(args, from, column_stride, length_stride,
                                                        smaller(layout.columns - column, width), rows, width, local);
      float* to = static_cast<float*>(args.packed) + layout.offset(b) + (depth * pairs * layout.length + first) * width;
      for (int64_t k = 0; k < rows; k++, to += width) {
        const float* row[number];
        for (int t = 0; t < number; t++) row[t] = taps.at(k, turned ? number - 1 - t : t);
        transform_filter<R, S>(row, width, to, layout.length * width);
      }
    }
  });
}

}  // namespace

void conv_winograd_pack(const ConvPackArgs& args) {
  with_schemes(args.winograd, args.kernel, !args.columns_first,
               [&](auto rows, auto columns) { pack<decltype(rows), decltype(columns)>(args); });
}

}  // namespace gencore::GENCORE_ISA
