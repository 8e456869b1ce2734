// Convolutions by Winograd's minimal filtering: fewer products than the sums have terms (Winograd, "Arithmetic
// complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016,
// section 4.1).
//
//   3x3 at a stride of 1, transposed or not       F(2x2, 3x3): 16 products for 36 terms
//   the same in larger tiles                      F(4x4, 3x3): 49 products for 144 terms, or less exact 36
//   3x3 at a stride of 2                          F(2x2, 2x2) where a phase has two taps: 25 products for 36 terms
//   4x4 at a stride of 2 and a padding of 1       the same: 36 products for 64 terms
//   the same two in larger tiles                  F(3x3, 2x2): 49 products for 81 terms, and 64 for 144
//   8 along a line at a stride of 1               F(3, 2) of fours, each F(4, 4): 36 products for 96 terms
//
// Of each tile of outputs the inputs d under it become V = B' d B, and a filter g becomes U = G g G'; an output channel
// is then A' (sum over input channels of U * V) A, where A and B hold only zeros and ones of either sign. The sums over
// channels are products of matrices, [tiles, C] by [C, O], through the register tile of tile.h; a thread makes them for
// a box of tiles. Every transform is one down the rows and one along the columns, so a scheme (winograd_unit.h,
// winograd_strided.h) is 1-D.
//
// In three dimensions nothing is saved along the depth: an output plane is the sum of such convolutions of a few input
// planes, one for each tap, and the transforms of an input plane serve all output planes that it is part of.
//
// The rounding error is that of direct sums: the transforms cost about one bit, and the sums are that much shorter. In
// one thing the result differs: where an input is infinite or not a number, so are all outputs of its tile, not only
// those under the filter. `finite` says that this happened, and the caller takes conv_forward instead.
#pragma once

#include "cpu/conv_geometry.h"
#include "cpu/winograd_strided.h"
#include "cpu/winograd_unit.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

// V of one tile, or of it the rows of values from `first` to `last`; rows[i * row_stride] are its inputs, which are
// multiplied by `style`, one factor a channel, if there is one. Value i of these of vector c of channels goes to
// v[i * value_stride + c * vector_stride].
template <class R, class S, int first = 0, int last = R::kValues>
GENCORE_INLINE void transform_input(const float* const* rows, int64_t row_stride, int64_t channels, const float* style,
                                    float* v, int64_t value_stride, int64_t vector_stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, channels - c));
    const vfloat factor = style ? load_lanes(style + c, n) : vfloat{};
    vfloat half[R::kValues][S::kInputs];
    for (int j = 0; j < S::kInputs; j++) {
      vfloat d[R::kInputs], values[R::kValues];
      for (int i = 0; i < R::kInputs; i++) {
        d[i] = load_lanes(rows[(i * S::kInputs + j) * row_stride] + c, n);
        if (style) d[i] *= factor;
      }
      R::values(d, values);
      for (int i = first; i < last; i++) half[i][j] = values[i];
    }
    for (int i = first; i < last; i++) {
      vfloat values[S::kValues];
      S::values(half[i], values);
      for (int j = 0; j < S::kValues; j++)
        store(v + ((i - first) * S::kValues + j) * value_stride + c / kLanes * vector_stride, values[j]);
    }
  }
}

// The tiles of `shape` as a geometry: "outputs" at a stride of kStep, under a "filter" of kInputs along each axis. Its
// input planes are those of the image, one at a time; its grid is that of the output.
template <class R, class S>
Geometry tile_geometry(const ConvShape& shape, bool transposed, Arena& arena) {
  constexpr int taps[] = {1, R::kTaps, S::kTaps}, inputs[] = {1, R::kInputs, S::kInputs},
                step[] = {1, R::kStep, S::kStep}, outputs[] = {1, R::kOutputs, S::kOutputs};
  ConvShape tiles = shape;
  tiles.kernel[0] = tiles.stride[0] = 1;
  tiles.padding[0] = 0;
  for (int a = 1; a < 3; a++) {
    tiles.kernel[a] = inputs[a];
    tiles.stride[a] = step[a];
    tiles.out_size[a] = ceil_div(shape.out_size[a], outputs[a]);
    // Transposed at a stride of 2, the first output of a tile meets the input before it, too.
    if (transposed) tiles.padding[a] = step[a] < outputs[a] ? 1 : taps[a] - 1 - shape.padding[a];
  }
  Geometry g = make_geometry(tiles, false, arena);
  for (int a = 1; a < 3; a++) {
    g.output_step[a] = outputs[a];
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

// Panels [block of columns][tap along the depth][pair of pairs][length][columns of the block].
struct WinogradLayout {
  int64_t columns, length, pairs;  // pairs: those of all taps along the depth
  static constexpr int64_t block = kMaxVectors * kLanes;
  int64_t blocks() const { return ceil_div(columns, block); }
  int vectors(int64_t b) const { return static_cast<int>(ceil_div(smaller(columns - b * block, block), kLanes)); }
  int64_t offset(int64_t b) const { return b * block * length * pairs; }
  int64_t size() const { return ceil_div(columns, kLanes) * kLanes * length * pairs; }
};

// use(rows, columns) with the schemes of a winograd, of a filter's sides and of whether the convolution is transposed.
// Of a 3x3 at a stride of 2 that is not, larger tiles would save a tenth of the products and cost as much in
// transforms.
template <class Use>
void with_schemes(Winograd winograd, const int64_t (&kernel)[3], bool transposed, const Use& use) {
  const auto both = [&](auto scheme) { use(scheme, scheme); };
  switch (winograd) {
    case Winograd::none:
      return;
    case Winograd::unit:
      if (kernel[2] == 1) return use(Line8{}, Single{});
      return both(Filter3{});
    case Winograd::unit_large:
      return both(Filter3Large{});
    case Winograd::unit_inexact:
      return both(Filter3Inexact{});
    case Winograd::strided:
      if (kernel[1] == 4) return transposed ? both(Transposed4{}) : both(Strided4{});
      return transposed ? both(Transposed3{}) : both(Strided3{});
    case Winograd::strided_large:
      if (kernel[1] == 4) return transposed ? both(Transposed4Large{}) : both(Strided4Large{});
      if (transposed) both(Transposed3Large{});
  }
}

}  // namespace

}  // namespace gencore::GENCORE_ISA
