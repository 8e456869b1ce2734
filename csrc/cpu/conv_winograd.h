// Convolutions by Winograd's minimal filtering: fewer products than the sums have terms (Winograd, "Arithmetic
// complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016,
// section 4.1).
//
//   3x3 at a stride of 1, transposed or not       F(2x2, 3x3): 16 products for 36 terms
//   the same over many channels and pixels        F(4x4, 3x3): 36 products for 144 terms
//   3x3 at a stride of 2                          F(2x2, 2x2) where a phase has two taps: 25 products for 36 terms
//   4x4 at a stride of 2 and a padding of 1       the same: 36 products for 64 terms
//
// Of each tile of outputs the inputs d under it become V = B' d B, and a filter g becomes U = G g G'; an output channel
// is then A' (sum over input channels of U * V) A, where A and B hold only zeros and ones of either sign. The sums over
// channels are products of matrices, [tiles, C] by [C, O], through the register tile of tile.h; a thread makes them for
// a box of tiles. Every transform is one along the columns and the same along the rows, so a scheme below is 1-D.
//
// In three dimensions nothing is saved along the depth: an output plane is the sum of such convolutions of a few input
// planes, one for each tap, and the transforms of an input plane serve all output planes that it is part of.
//
// The rounding error is that of direct sums: the transforms cost about one bit, and the sums are that much shorter. In
// one thing the result differs: where an input is infinite or not a number, so are all outputs of its tile, not only
// those under the filter. `finite` says that this happened, and the caller takes conv_forward instead.
#pragma once

#include "cpu/conv_geometry.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

// A filter of kTaps; a tile of kOutputs outputs from kInputs inputs, and kStep inputs to the next tile. Pair p is a
// filter value times the input value kValue[p], and part of the sum kSum[p]. The two gradients are the transposes of
// `outputs` and `filter`.
struct Filter3 {
  static constexpr int kTaps = 3, kInputs = 4, kStep = 2, kOutputs = 2, kValues = 4, kSums = 4, kPairs = 4;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3}, kSum[kPairs] = {0, 1, 2, 3};
  static constexpr int64_t kLongestRun = 64, kBoxBytes = 1280 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[0];
    u[1] = 0.5f * ((g[0] + g[2]) + g[1]);
    u[2] = 0.5f * ((g[0] + g[2]) - g[1]);
    u[3] = g[2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    y[0] = (m[0] + m[1]) + m[2];
    y[1] = (m[1] - m[2]) - m[3];
  }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    const vfloat sum = 0.5f * (u[1] + u[2]);
    g[0] = u[0] + sum;
    g[1] = 0.5f * (u[1] - u[2]);
    g[2] = u[3] + sum;
  }
};

// Interpolation at 0, 1, -1, 1/2, -2 and infinity, whose rounding errors are the least of the points that are powers of
// two (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
// 2020, section 5): half of what 0, 1, -1, 2 and -2 give.
struct Filter3Large {
  static constexpr int kTaps = 3, kInputs = 6, kStep = 4, kOutputs = 4, kValues = 6, kSums = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4, 5}, kSum[kPairs] = {0, 1, 2, 3, 4, 5};
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    const vfloat odd = d[3] - d[1], even = d[4] - d[2], half = 0.5f * (odd + even);
    v[0] = 0.5f * (even - (d[2] - d[0])) + 0.75f * odd;
    v[1] = half + 0.75f * (d[3] + d[2]);
    v[2] = (even - half) + 0.75f * (d[3] - d[2]);
    v[3] = odd + 0.5f * even;
    v[4] = even - 0.5f * odd;
    v[5] = 0.5f * ((d[5] - d[3]) - odd) + 0.75f * even;
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    const vfloat outer = (2.0f / 3.0f) * (g[0] + g[2]), inner = (2.0f / 3.0f) * g[1];
    u[0] = 2.0f * g[0];
    u[1] = inner + outer;
    u[2] = inner - outer;
    u[3] = (-8.0f / 15.0f) * (4.0f * g[0] + 2.0f * g[1] + g[2]);
    u[4] = (1.0f / 15.0f) * (g[0] - 2.0f * g[1] + 4.0f * g[2]);
    u[5] = 2.0f * g[2];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    const vfloat sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = (m[0] + sum) + (m[3] + m[4]);
    y[1] = difference + (0.5f * m[3] - 2.0f * m[4]);
    y[2] = sum + (0.25f * m[3] + 4.0f * m[4]);
    y[3] = (difference + m[5]) + (0.125f * m[3] - 8.0f * m[4]);
  }
};

// Output 2q is d[q-1] g[2] + d[q] g[0], and output 2q+1 is d[q] g[1] (without padding); a tile is two of each.
struct Transposed3 {
  static constexpr int kTaps = 3, kInputs = 3, kStep = 2, kOutputs = 4, kValues = 4, kSums = 5, kPairs = 5;
  static constexpr int kValue[kPairs] = {0, 1, 2, 1, 3}, kSum[kPairs] = {0, 1, 2, 3, 4};
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
    v[3] = d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[2];
    u[1] = g[2] + g[0];
    u[2] = g[0];
    u[3] = u[4] = g[1];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    y[0] = m[0] + m[1];
    y[1] = m[3];
    y[2] = m[1] + m[2];
    y[3] = m[4];
  }
};

// A stride of 2: two outputs of F(2, 2), whatever the phases add to its three sums.
struct Strided {
  static constexpr int kStep = 4, kOutputs = 2, kSums = 3;
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
  static GENCORE_INLINE void sums_gradient(const vfloat (&y)[kOutputs], vfloat (&m)[kSums]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[1];
  }
};

// The outer taps meet the even inputs, and the middle one the odd inputs.
struct Strided3 : Strided {
  static constexpr int kTaps = 3, kInputs = 5, kValues = 5, kPairs = 5;
  static constexpr int kValue[kPairs] = {0, 1, 2, 3, 4}, kSum[kPairs] = {0, 0, 1, 2, 2};
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[2];
    v[1] = d[1];
    v[2] = d[2];
    v[3] = d[3];
    v[4] = d[4] - d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[0];
    u[1] = u[3] = g[1];
    u[2] = g[0] + g[2];
    u[4] = g[2];
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    g[0] = u[0] + u[2];
    g[1] = u[1] + u[3];
    g[2] = u[2] + u[4];
  }
};

// Output 2q is d[q-1] g[3] + d[q] g[1], and output 2q+1 is d[q] g[2] + d[q+1] g[0]; a tile is two of each.
struct Transposed4 {
  static constexpr int kTaps = 4, kInputs = 4, kStep = 2, kOutputs = 4, kValues = 5, kSums = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 1, 2, 2, 3, 4}, kSum[kPairs] = {0, 1, 2, 3, 4, 5};
  static constexpr int64_t kLongestRun = 32, kBoxBytes = 2560 * 1024;
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
    v[3] = d[2];
    v[4] = d[3] - d[2];
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    u[0] = g[3];
    u[1] = g[3] + g[1];
    u[2] = g[1];
    u[3] = -g[2];
    u[4] = g[2] + g[0];
    u[5] = g[0];
  }
  static GENCORE_INLINE void outputs(const vfloat (&m)[kSums], vfloat (&y)[kOutputs]) {
    y[0] = m[0] + m[1];
    y[1] = m[3] + m[4];
    y[2] = m[1] + m[2];
    y[3] = m[4] + m[5];
  }
};

// Even taps meet the odd inputs and odd taps the even ones; the sums of the two are one.
struct Strided4 : Strided {
  static constexpr int kTaps = 4, kInputs = 6, kValues = 6, kPairs = 6;
  static constexpr int kValue[kPairs] = {0, 3, 1, 4, 2, 5}, kSum[kPairs] = {0, 0, 1, 1, 2, 2};
  static GENCORE_INLINE void values(const vfloat (&d)[kInputs], vfloat (&v)[kValues]) {
    for (int i = 0; i < 2; i++) {
      v[3 * i] = d[i] - d[2 + i];
      v[3 * i + 1] = d[2 + i];
      v[3 * i + 2] = d[4 + i] - d[2 + i];
    }
  }
  static GENCORE_INLINE void filter(const vfloat (&g)[kTaps], vfloat (&u)[kPairs]) {
    for (int i = 0; i < 2; i++) {
      u[i] = g[i];
      u[2 + i] = g[i] + g[2 + i];
      u[4 + i] = g[2 + i];
    }
  }
  static GENCORE_INLINE void filter_gradient(const vfloat (&u)[kPairs], vfloat (&g)[kTaps]) {
    for (int i = 0; i < 2; i++) {
      g[i] = u[i] + u[2 + i];
      g[2 + i] = u[2 + i] + u[4 + i];
    }
  }
};

// V of one tile; rows[i * row_stride] are its inputs, which are multiplied by `style`, one factor a channel, if there
// is one. Value i of vector c of channels goes to v[i * value_stride + c * vector_stride].
template <class S>
GENCORE_INLINE void transform_input(const float* const* rows, int64_t row_stride, int64_t channels, const float* style,
                                    float* v, int64_t value_stride, int64_t vector_stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, channels - c));
    const vfloat factor = style ? load_lanes(style + c, n) : vfloat{};
    vfloat half[S::kValues][S::kInputs];
    for (int j = 0; j < S::kInputs; j++) {
      vfloat d[S::kInputs], values[S::kValues];
      for (int i = 0; i < S::kInputs; i++) {
        d[i] = load_lanes(rows[(i * S::kInputs + j) * row_stride] + c, n);
        if (style) d[i] *= factor;
      }
      S::values(d, values);
      for (int i = 0; i < S::kValues; i++) half[i][j] = values[i];
    }
    for (int i = 0; i < S::kValues; i++) {
      vfloat values[S::kValues];
      S::values(half[i], values);
      for (int j = 0; j < S::kValues; j++)
        store(v + (i * S::kValues + j) * value_stride + c / kLanes * vector_stride, values[j]);
    }
  }
}

// The tiles of `shape` as a geometry: "outputs" at a stride of kStep, under a "filter" of kInputs x kInputs. Its input
// planes are those of the image, one at a time; its grid is that of the output.
template <class S>
Geometry tile_geometry(const ConvShape& shape, bool transposed, Arena& arena) {
  ConvShape tiles = shape;
  tiles.kernel[0] = tiles.stride[0] = 1;
  tiles.padding[0] = 0;
  for (int a = 1; a < 3; a++) {
    tiles.kernel[a] = S::kInputs;
    tiles.stride[a] = S::kStep;
    tiles.out_size[a] = ceil_div(shape.out_size[a], S::kOutputs);
    // Transposed at a stride of 2, the first output of a tile meets the input before it, too.
    if (transposed) tiles.padding[a] = S::kStep < S::kOutputs ? 1 : 2 - shape.padding[a];
  }
  Geometry g = make_geometry(tiles, false, arena);
  for (int a = 1; a < 3; a++) {
    g.output_step[a] = S::kOutputs;
    g.shape.out_size[a] = shape.out_size[a];
  }
  if (transposed) {
    g.output_step[0] = shape.stride[0];
    g.grid[0] = ceil_div(shape.out_size[0], shape.stride[0]);
  }
  return g;
}

// Phases and taps along the depth.
inline Geometry depth_geometry(const ConvShape& shape, bool transposed, Arena& arena) {
  ConvShape depth = shape;
  for (int a = 1; a < 3; a++) {
    depth.kernel[a] = depth.stride[a] = 1;
    depth.padding[a] = 0;
  }
  return make_geometry(depth, transposed, arena);
}

// The input planes under planes of the grid. Those of one remainder on division by the step are neighbours in memory,
// so that a tap is a shift: tap t of grid plane q stands in slot shift(t) + q - (first of the grid planes).
struct Planes {
  int64_t step, first, number, run;  // first: as a plane of the image, if there is one
  Planes(const Geometry& depth, int64_t grid_first, int64_t grid_count)
      : step(depth.input_step[0]), first(grid_first * step + depth.low[0]) {
    number = (grid_count - 1) * step + depth.high[0] - depth.low[0] + 1;
    run = ceil_div(number, step);
  }
  int64_t slots() const { return step * run; }
  int64_t slot(int64_t plane) const { return plane % step * run + plane / step; }
  int64_t shift(const Geometry& depth, const Tap& tap) const { return slot(tap.offset[0] - depth.low[0]); }
  // Slots that `count` planes of the grid can take, before the geometry is filled in.
  static int64_t most_slots(const ConvShape& shape, bool transposed, int64_t count) {
    const int64_t step = transposed ? 1 : shape.stride[0];
    const int64_t reach = transposed ? (shape.kernel[0] + shape.stride[0] - 2) / shape.stride[0] : shape.kernel[0] - 1;
    return step * ceil_div((count - 1) * step + reach + 1, step);
  }
};

// One plane of a box.
inline Box plane_of(const Box& box, int64_t plane) {
  Box one = box;
  one.origin[0] = plane;
  one.count[0] = 1;
  return one;
}

}  // namespace

}  // namespace gencore::GENCORE_ISA
