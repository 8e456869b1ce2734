// Which input row every output pixel meets at every tap: phases, boxes of pixels, and tables of row pointers.
#pragma once

#include "cpu/conv.h"
#include "gencore/integers.h"
#include "gencore/tasks.h"
#include "gencore/tile.h"

namespace gencore::GENCORE_ISA {

GENCORE_INLINE int64_t product(const int64_t (&v)[3]) { return v[0] * v[1] * v[2]; }

// Panels: columns come in blocks of kMaxVectors vectors; the last block may have fewer. One to four float32 columns are
// kept as rows instead, [tap][column][length rounded up to a vector], for conv_few.h.
template <class T>
struct PanelLayout {
  int64_t groups, columns, length, taps;  // columns and length (of the reduction) in one group
  static constexpr int64_t lanes = Tile<T>::lanes;
  static constexpr int64_t block = kMaxVectors * lanes;
  bool few() const { return sizeof(T) == 4 && columns <= 4 && length >= lanes; }
  int64_t padded_length() const {
    const int64_t unit = few() ? lanes : Tile<T>::pack;
    return ceil_div(length, unit) * unit;
  }
  int64_t blocks() const { return ceil_div(columns, block); }
  int vectors(int64_t b) const { return static_cast<int>(ceil_div(smaller(columns - b * block, block), lanes)); }
  int64_t group_size() const { return taps * padded_length() * (few() ? columns : ceil_div(columns, lanes) * lanes); }
  int64_t size() const { return groups * group_size(); }
  int64_t offset(int64_t group, int64_t b) const { return group * group_size() + b * block * taps * padded_length(); }
  int64_t tap_size(int64_t b) const { return padded_length() * (few() ? columns : vectors(b) * lanes); }
};

// The panels of conv_scatter.h, behind those rows: a column for each tap and output channel, in blocks of whole filter
// rows.
struct ScatterLayout {
  int64_t filter_rows, unit, length;  // unit: the columns of one filter row
  static constexpr int64_t block = kMaxVectors * kLanes;
  ScatterLayout(int64_t columns, int64_t reduction, const int64_t (&kernel)[3])
      : filter_rows(kernel[0] * kernel[1]), unit(kernel[2] * columns), length(reduction) {}
  // Where the lanes that are filled are worth more than those that conv_few.h fills.
  bool exists() const { return unit <= block && filter_rows * unit * 5 >= width() * 2; }
  int64_t rows_of_block() const { return smaller(filter_rows, block / unit); }
  int64_t blocks() const { return ceil_div(filter_rows, rows_of_block()); }
  int64_t rows(int64_t b) const { return smaller(rows_of_block(), filter_rows - b * rows_of_block()); }
  int vectors(int64_t b) const { return static_cast<int>(ceil_div(rows(b) * unit, kLanes)); }
  int64_t offset(int64_t b) const { return b * vectors(0) * kLanes; }  // columns before the block
  int64_t width() const { return offset(blocks() - 1) + vectors(blocks() - 1) * kLanes; }
  int64_t size() const { return exists() ? width() * length : 0; }
};

// Where a pixel's row of channels starts.
struct PixelStrides {
  int64_t batch, axis[3];
};
GENCORE_INLINE PixelStrides channels_last_strides(int64_t channels, const int64_t (&size)[3]) {
  const int64_t w = channels, h = size[2] * w, d = size[1] * h;
  return {size[0] * d, {d, h, w}};
}

// Along one axis, output index = first + q * step for q = 0, 1, ... and tap t reads input index
// q * input_step + offset: for a convolution one phase, for a transposed one `stride` of them.
struct Phase {
  int64_t first[3];
  int64_t tap_begin, tap_count;
};
struct Tap {
  int32_t index;  // in the kernel, row-major
  int32_t offset[3];
};

struct Geometry {
  ConvShape shape;
  int64_t input_step[3], output_step[3];
  int64_t grid[3];  // pixels q of the largest phase
  int64_t phases, taps;
  Phase* phase;
  Tap* tap;
  int64_t low[3], high[3];  // smallest and largest offset of any tap
};

inline Geometry make_geometry(const ConvShape& shape, bool transposed, Arena& arena) {
  Geometry g{};
  g.shape = shape;
  g.taps = product(shape.kernel);
  g.phases = transposed ? product(shape.stride) : 1;
  for (int a = 0; a < 3; a++) {
    g.input_step[a] = transposed ? 1 : shape.stride[a];
    g.output_step[a] = transposed ? shape.stride[a] : 1;
    g.grid[a] = ceil_div(shape.out_size[a], g.output_step[a]);
  }
  g.phase = arena.take<Phase>(g.phases);
  g.tap = arena.take<Tap>(g.taps);
  return g;
}

inline void fill_geometry(Geometry& g, bool transposed) {
  const ConvShape& s = g.shape;
  int64_t next = 0;
  for (int64_t p = 0; p < g.phases; p++) {
    Phase& phase = g.phase[p];
    phase.first[0] = p / (g.output_step[1] * g.output_step[2]);
    phase.first[1] = p / g.output_step[2] % g.output_step[1];
    phase.first[2] = p % g.output_step[2];
    phase.tap_begin = next;
    for (int64_t index = 0; index < g.taps; index++) {
      const int64_t t[3] = {index / (s.kernel[1] * s.kernel[2]), index / s.kernel[2] % s.kernel[1],
                            index % s.kernel[2]};
      Tap tap{static_cast<int32_t>(index), {}};
      bool mine = true;
      for (int a = 0; a < 3; a++) {
        int64_t offset = t[a] * s.dilation[a] - s.padding[a];
        if (transposed) {
          const int64_t distance = phase.first[a] - offset;
          mine &= modulo(distance, s.stride[a]) == 0;
          offset = distance / s.stride[a];
        }
        tap.offset[a] = static_cast<int32_t>(offset);
      }
      if (mine) g.tap[next++] = tap;
    }
    phase.tap_count = next - phase.tap_begin;
  }
  for (int a = 0; a < 3; a++) {
    g.low[a] = INT64_MAX, g.high[a] = INT64_MIN;
    for (int64_t t = 0; t < next; t++) {
      g.low[a] = smaller(g.low[a], g.tap[t].offset[a]);
      g.high[a] = larger(g.high[a], g.tap[t].offset[a]);
    }
  }
}

// A box of the pixel grid, and the order in which its pixels stand in tables.
struct Box {
  int64_t batch, batch_count, origin[3], count[3];
  int64_t pixels() const { return batch_count * count[0] * count[1] * count[2]; }
};

// How the grid is cut into boxes of about `target` pixels: evenly, whole rows first (whole images first of all axes).
struct Boxes {
  int64_t step[4], cut[4], number;
  bool batch_inside;  // the batch index runs fastest within a box: pixels of one place, which meet the same padding
};

inline Boxes cut_into_boxes(int64_t batch, const int64_t (&grid)[3], int64_t target, bool batch_inside,
                            bool batch_first) {
  const int64_t extent[4] = {batch, grid[0], grid[1], grid[2]};
  const int order_images[4] = {3, 2, 1, 0}, order_batch[4] = {0, 3, 2, 1};
  Boxes boxes{};
  boxes.number = 1;
  boxes.batch_inside = batch_inside;
  int64_t room = target;
  for (int i = 0; i < 4; i++) {
    const int a = batch_first ? order_batch[i] : order_images[i];
    const int64_t pieces = ceil_div(extent[a], larger(room, 1));
    boxes.step[a] = ceil_div(extent[a], pieces);
    boxes.cut[a] = ceil_div(extent[a], boxes.step[a]);
    boxes.number *= boxes.cut[a];
    room /= boxes.step[a];
  }
  return boxes;
}

inline Box box_at(const Boxes& boxes, int64_t batch, const int64_t (&grid)[3], int64_t index) {
  int64_t at[4];
  for (int a = 3; a >= 0; a--) {
    at[a] = index % boxes.cut[a] * boxes.step[a];
    index /= boxes.cut[a];
  }
  Box box{at[0], smaller(boxes.step[0], batch - at[0]), {}, {}};
  for (int a = 0; a < 3; a++) {
    box.origin[a] = at[a + 1];
    box.count[a] = smaller(boxes.step[a + 1], grid[a] - at[a + 1]);
  }
  return box;
}

struct Pixel {
  int64_t batch, at[3];
};

// body(i, pixel, count) for runs of pixels of a box, in the order in which they stand in tables: pixels i to i + count,
// the first of which is given, differ in the last axis, or with batch_inside in the batch index.
template <class Body>
inline void for_each_run(const Box& box, bool batch_inside, const Body& body) {
  const int64_t images = batch_inside ? 1 : box.batch_count, columns = batch_inside ? box.count[2] : 1;
  const int64_t run = batch_inside ? box.batch_count : box.count[2];
  int64_t i = 0;
  for (int64_t n = 0; n < images; n++)
    for (int64_t d = 0; d < box.count[0]; d++)
      for (int64_t h = 0; h < box.count[1]; h++)
        for (int64_t w = 0; w < columns; w++, i += run)
          body(i, Pixel{box.batch + n, {box.origin[0] + d, box.origin[1] + h, box.origin[2] + w}}, run);
}

// rows[t * stride + i]: the input row that pixel i of the box meets at tap t; `zeros` in the padding.
template <class T>
inline void list_rows(const Geometry& g, const Tap* taps, int64_t tap_count, const Box& box, bool batch_inside,
                      const T* x, const PixelStrides& strides, const T* zeros, const T** rows, int64_t stride) {
  const int64_t step = batch_inside ? strides.batch : g.input_step[2] * strides.axis[2];
  for_each_run(box, batch_inside, [&](int64_t i, const Pixel& pixel, int64_t count) {
    for (int64_t t = 0; t < tap_count; t++) {
      int64_t at[3], offset = pixel.batch * strides.batch;
      bool inside = true;
      for (int a = 0; a < 3; a++) {
        at[a] = pixel.at[a] * g.input_step[a] + taps[t].offset[a];
        offset += at[a] * strides.axis[a];
        if (a < 2 || batch_inside) inside &= at[a] >= 0 && at[a] < g.shape.in_size[a];
      }
      // Pixels [first, last) of the run meet the image.
      int64_t first = 0, last = inside ? count : 0;
      if (inside && !batch_inside) {
        first = smaller(count, ceil_div(larger(0, -at[2]), g.input_step[2]));
        last = larger(first, smaller(count, ceil_div(larger(0, g.shape.in_size[2] - at[2]), g.input_step[2])));
      }
      const T** to = rows + t * stride + i;
      for (int64_t j = 0; j < first; j++) to[j] = zeros;
      for (int64_t j = first; j < last; j++) to[j] = x + (offset + j * step);
      for (int64_t j = last; j < count; j++) to[j] = zeros;
    }
  });
}

// The pixels of a box that one phase has: the others would be past the output.
inline Box phase_box(const Geometry& g, const Phase& phase, Box box) {
  for (int a = 0; a < 3; a++) {
    const int64_t all = ceil_div(larger(0, g.shape.out_size[a] - phase.first[a]), g.output_step[a]);
    box.count[a] = larger(0, smaller(box.count[a], all - box.origin[a]));
  }
  return box;
}

// The part of the output that a box of the grid covers, all phases together.
inline Box output_box(const Geometry& g, const Box& box) {
  Box out = box;
  for (int a = 0; a < 3; a++) {
    out.origin[a] = box.origin[a] * g.output_step[a];
    out.count[a] = smaller(box.count[a] * g.output_step[a], g.shape.out_size[a] - out.origin[a]);
  }
  return out;
}

// The part of the input that it meets.
inline Box input_box(const Geometry& g, const Box& box) {
  Box in = box;
  for (int a = 0; a < 3; a++) {
    const int64_t begin = larger(0, box.origin[a] * g.input_step[a] + g.low[a]);
    const int64_t end =
        smaller(g.shape.in_size[a], (box.origin[a] + box.count[a] - 1) * g.input_step[a] + g.high[a] + 1);
    in.origin[a] = begin;
    in.count[a] = larger(0, end - begin);
  }
  return in;
}

// The pixels of that part, at most.
inline int64_t most_input_pixels(const Geometry& g, const Boxes& boxes) {
  int64_t pixels = boxes.step[0];
  for (int a = 0; a < 3; a++)
    pixels *= smaller(g.shape.in_size[a], (boxes.step[a + 1] - 1) * g.input_step[a] + g.high[a] - g.low[a] + 1);
  return pixels;
}

// Where the first row of the whole image would be, from that of the part that is there.
template <class T>
inline T* whole_image(T* rows, const Box& part, const PixelStrides& strides) {
  int64_t origin = part.batch * strides.batch;
  for (int a = 0; a < 3; a++) origin += part.origin[a] * strides.axis[a];
  return rows - origin;
}

// --- contiguous images, a box at a time ------------------------------------------------------------------------------

// Pixels of one line whose channels come `phases` numbers at a time: see ConvForwardArgs.
template <bool to_rows, int64_t phases, class T>
inline void copy_phases(T* line, int64_t plane, T* rows, int64_t row_stride, int64_t channels, int64_t pixels) {
  constexpr int64_t kPixels = 16;  // their numbers of one plane fill a line of the cache and more
  for (int64_t first = 0; first < pixels; first += kPixels)
    for (int64_t c = 0; c < channels; c += phases)
      for (int64_t i = first; i < smaller(pixels, first + kPixels); i++) {
        T *of_plane = line + c * plane + i * phases, *of_row = rows + i * row_stride + c;
        std::memcpy(to_rows ? of_row : of_plane, to_rows ? of_plane : of_row, phases * sizeof(T));
      }
}

// Copies channels [channel, channel + channels) of a box between a contiguous image [batch, all_channels, size...] and
// pixel rows [box pixels, channels], pixels in row-major order of (batch, axes). Phases: see ConvForwardArgs.
template <bool to_rows, class T>
inline void copy_box(T* image, int64_t all_channels, const int64_t (&size)[3], const Box& box, int64_t channel,
                     int64_t channels, T* rows, int64_t row_stride, int64_t phases = 1) {
  const int64_t plane = product(size);
  // The innermost axes that the box covers whole make one run.
  int64_t run = box.count[2], outer[2] = {box.count[0], box.count[1]};
  if (box.count[2] == size[2]) {
    run *= box.count[1];
    outer[1] = 1;
    if (box.count[1] == size[1]) run *= box.count[0], outer[0] = 1;
  }
  for (int64_t n = 0; n < box.batch_count; n++)
    for (int64_t d = 0; d < outer[0]; d++)
      for (int64_t h = 0; h < outer[1]; h++) {
        T* from = image + ((box.batch + n) * all_channels + channel) * plane +
                  (((box.origin[0] + d) * size[1] + box.origin[1] + h) * size[2] + box.origin[2]) * phases;
        if (phases == 8)
          copy_phases<to_rows, 8>(from, plane, rows, row_stride, channels, run);
        else if (phases == 4)
          copy_phases<to_rows, 4>(from, plane, rows, row_stride, channels, run);
        else if (phases == 2)
          copy_phases<to_rows, 2>(from, plane, rows, row_stride, channels, run);
        else if (to_rows)
          transpose(from, plane, rows, row_stride, channels, run);
        else
          transpose(rows, row_stride, from, plane, run, channels);
        rows += run * row_stride;
      }
}

// The input under a box as pixel rows in `staged`; what is returned is where the first row of the whole image would be.
template <class T>
inline const T* stage_input(const Geometry& g, const void* x, const Box& box, T* staged, PixelStrides& strides,
                            int64_t phases = 1) {
  const Box input = input_box(g, box);
  const int64_t channels = g.shape.in_channels;
  if (input.pixels() > 0)
    copy_box<true>(static_cast<T*>(const_cast<void*>(x)), channels, g.shape.in_size, input, 0, channels, staged,
                   channels, phases);
  strides = channels_last_strides(channels, input.count);
  return whole_image(staged, input, strides);
}

// The same from an image in channels_last.
template <class T>
inline void copy_rows(const T* image, int64_t all_channels, const int64_t (&size)[3], const Box& box, int64_t channel,
                      int64_t channels, T* rows, int64_t row_stride) {
  const PixelStrides strides = channels_last_strides(all_channels, size);
  for (int64_t n = 0; n < box.batch_count; n++)
    for (int64_t d = 0; d < box.count[0]; d++)
      for (int64_t h = 0; h < box.count[1]; h++) {
        const T* from = image + (box.batch + n) * strides.batch + (box.origin[0] + d) * strides.axis[0] +
                        (box.origin[1] + h) * strides.axis[1] + box.origin[2] * strides.axis[2] + channel;
        for (int64_t w = 0; w < box.count[2]; w++, rows += row_stride)
          std::memcpy(rows, from + w * all_channels, channels * sizeof(T));
      }
}

}  // namespace gencore::GENCORE_ISA
