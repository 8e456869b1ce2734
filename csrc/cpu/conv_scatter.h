// Convolution to one to four output channels where every input pixel meets every tap of the filter (transposed, or with
// a stride of 1), as in the last layer of a generator. The products of an input pixel with all taps are a dense tile, a
// column for each tap and output channel, where conv_few.h has idle lanes to fold; they are then added to the output
// pixels that they belong to. Each thread does so for a band of an image, in a buffer of its own.
#pragma once

#include "cpu/conv_few.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

struct ScatterForward {
  // Pixels whose products are made at once, and of these added: the former stay in the first-level cache, the latter's
  // products with a band's sums in the second. A row too long for that is none of ours.
  static constexpr int64_t kPart = 24, kChunk = 96, kBandBytes = 384 * 1024, kMostBytes = 4 * kBandBytes;
  // Bands that are enough for any number of threads, and fewer than are worth it.
  static constexpr int64_t kEnoughBands = 16, kFewestBands = 4;

  const ConvForwardArgs& args;
  const ConvShape& shape;
  ScatterLayout layout;
  const float* panels;
  // Of an axis: input index i and tap t (reversed, unless transposed) add to the sum i * step + t * dilation + base,
  // which is that of output index o where o + first is the same; `extent` sums in all.
  int64_t step[3], base[3], first[3], extent[3];
  int axis;  // along which the output is cut into bands
  int64_t band, bands;
  BoxMoments box_moments{};

  explicit ScatterForward(const ConvForwardArgs& a)
      : args(a), shape(a.shape), layout(a.shape.out_channels, a.shape.in_channels, a.shape.kernel) {
    const PanelLayout<float> rows{1, shape.out_channels, shape.in_channels, product(shape.kernel)};
    panels = static_cast<const float*>(args.packed) + rows.size();
    for (int x = 0; x < 3; x++) {
      const int64_t reach = (shape.kernel[x] - 1) * shape.dilation[x];
      const int64_t shift = args.transposed ? shape.padding[x] : reach - shape.padding[x];
      step[x] = args.transposed ? shape.stride[x] : 1;
      base[x] = larger(0, -shift);
      first[x] = shift + base[x];
      extent[x] = larger((shape.in_size[x] - 1) * step[x] + reach + 1 + base[x], first[x] + shape.out_size[x]);
    }
    axis = shape.in_size[0] > 1 || shape.out_size[0] > 1 ? 0 : 1;
    const int64_t bytes = extent[0] * extent[1] * extent[2] / extent[axis] * columns() * sizeof(float);
    // Neighbours both need the input pixels between them, so a band is several times as wide as the filter.
    const int64_t wide = 4 * ((shape.kernel[axis] - 1) * shape.dilation[axis] + 1);
    const int64_t sharing = ceil_div(shape.batch * shape.out_size[axis], kEnoughBands);
    band = larger(1, smaller(kBandBytes / bytes, larger(sharing, wide)));
    band = smaller(ceil_div(band, step[axis]) * step[axis], shape.out_size[axis]);
    bands = ceil_div(shape.out_size[axis], band);
  }

  int64_t columns() const { return shape.out_channels; }

  bool pays() const {
    const PanelLayout<float> rows{shape.groups, columns(), shape.in_channels, product(shape.kernel)};
    const bool dense = args.transposed || product(shape.stride) == 1;
    return rows.few() && shape.groups == 1 && layout.exists() && dense && shape.dilation[2] == 1 &&
           shape.batch * bands >= kFewestBands && band_sums() * static_cast<int64_t>(sizeof(float)) <= kMostBytes;
  }

  struct FilterRow {  // where its first tap falls, from that of the first row: along `axis`, and in the sums
    int64_t place, offset;
  };

  struct Work {  // one thread's arrays
    FilterRow* filter_rows;
    float* sums;      // of a band, [axes...][columns]
    float* products;  // [block][chunk][columns of the block]
    const float** rows;
    float* staged_x;
    float* line;      // of the output, [pixel][columns]
    float* residual;  // of the line
    const float** scale;
    Moments<float>* moments;
  };

  Work take(Arena& arena) const {
    Work w{};
    const int64_t width = shape.out_size[2];
    w.filter_rows = arena.take<FilterRow>(layout.filter_rows);
    w.sums = arena.take<float>(band_sums() + kLanes);
    w.products = arena.take<float>(kChunk * layout.width());
    w.rows = arena.take<const float*>(kChunk + kMaxRows);
    if (!args.x_channels_last) w.staged_x = arena.take<float>(kChunk * shape.in_channels);
    w.line = arena.take<float>(width * columns() + kLanes);
    if (args.residual) w.residual = arena.take<float>(width * columns() + kLanes);
    if (args.scale) w.scale = arena.take<const float*>(width);
    if (args.mean) w.moments = arena.take<Moments<float>>(1);
    return w;
  }

  int64_t length(int x) const { return x == axis ? band : extent[x]; }  // of the band's sums
  int64_t band_sums() const { return length(0) * length(1) * length(2) * columns(); }

  // The products of input pixels [pixel, pixel + count) of an image with all taps.
  void multiply(int64_t n, int64_t pixel, int64_t count, Work& w) const {
    const int64_t plane = product(shape.in_size), channels = shape.in_channels;
    const float* x = static_cast<const float*>(args.x) + n * plane * channels;
    const float* rows = x + pixel * channels;
    if (!args.x_channels_last) {
      transpose(x + pixel, plane, w.staged_x, channels, channels, count);
      rows = w.staged_x;
    }
    // Behind the chunk lies the next one, if there is one: a row is never read there, only asked for.
    for (int64_t i = 0; i < count + kMaxRows; i++) w.rows[i] = rows + i * channels;
    for (int64_t part = 0; part < count; part += kPart) {
      Epilogue<float> e{};
      for (int64_t b = 0; b < layout.blocks(); b++) {
        const int64_t width = layout.vectors(b) * kLanes;
        const Segment<float> segment{w.rows + part, panels + layout.offset(b) * channels, nullptr, 0, channels};
        e.partial = w.products + kChunk * layout.offset(b) + part * width;
        run_block<float, false, true>(&segment, 1, smaller(kPart, count - part), layout.vectors(b), e);
      }
    }
  }

  // Adds the products of pixels [pixel, pixel + count) to the sums of outputs [begin, begin + size) along `axis`.
  void add(int64_t pixel, int64_t count, int64_t begin, int64_t size, const Work& w) const {
    const int64_t* in = shape.in_size;
    int64_t at[3] = {pixel / (in[1] * in[2]), pixel / in[2] % in[1], pixel % in[2]};
    for (int64_t i = 0; i < count; i++) {
      int64_t sum[3];
      for (int x = 0; x < 3; x++) sum[x] = at[x] * step[x] + base[x];
      sum[axis] -= begin + first[axis];
      float* sums = w.sums + ((sum[0] * length(1) + sum[1]) * length(2) + sum[2]) * columns();
      const float* products = w.products;
      const FilterRow* row = w.filter_rows;
      for (int64_t b = 0; b < layout.blocks(); b++) {
        const int64_t width = layout.vectors(b) * kLanes;
        const float* from = products + i * width;
        for (int64_t r = 0; r < layout.rows(b); r++, row++, from += layout.unit) {
          const int64_t place = sum[axis] + row->place;
          if (place >= 0 && place < size) add_row(from, sums + row->offset);
        }
        products += kChunk * width;
      }
      for (int x = 2; x > 0 && ++at[x] == in[x]; x--) at[x] = 0, at[0] += x == 1;
    }
  }

  GENCORE_INLINE void add_row(const float* from, float* to) const {
    int64_t j = 0;
    for (; j + kLanes <= layout.unit; j += kLanes) store(to + j, load(to + j) + load(from + j));
    if (j == layout.unit) return;
    const int n = static_cast<int>(layout.unit - j);
    store_lanes(to + j, load_lanes(to + j, n) + load_lanes(from + j, n), n);
  }

  // The epilogue on one row of the output, whose sums begin at `from`.
  void finish_line(int64_t n, int64_t d, int64_t h, const float* from, Epilogue<float>& e, Work& w) const {
    const int64_t width = shape.out_size[2], plane = product(shape.out_size);
    const int64_t at = (d * shape.out_size[1] + h) * width, image = n * plane * columns();
    float* y = static_cast<float*>(args.y) + image;
    const float* residual = static_cast<const float*>(args.residual) + image;
    std::memcpy(w.line, from, width * columns() * sizeof(float));
    if (e.has_residual && args.y_channels_last)
      std::memcpy(w.residual, residual + at * columns(), width * columns() * sizeof(float));
    if (e.has_residual && !args.y_channels_last) copy_line<true>(const_cast<float*>(residual) + at, plane, w.residual);
    apply_few(e, width, static_cast<int>(columns()), w.residual, w.line);
    if (args.y_channels_last)
      std::memcpy(y + at * columns(), w.line, width * columns() * sizeof(float));
    else
      copy_line<false>(y + at, plane, w.line);
  }

  // Between a line of the planes of a contiguous image and [pixel][columns].
  template <bool to_rows>
  void copy_line(float* planes, int64_t plane, float* rows) const {
    for (int64_t c = 0; c < columns(); c++)
      for (int64_t i = 0; i < shape.out_size[2]; i++) {
        float &in_plane = planes[c * plane + i], &in_rows = rows[i * columns() + c];
        to_rows ? in_rows = in_plane : in_plane = in_rows;
      }
  }

  void finish(int64_t task, int64_t n, int64_t begin, int64_t size, Work& w) const {
    Epilogue<float> e{};
    e.has_residual = args.residual != nullptr;
    if (args.scale) {
      const float* scale = static_cast<const float*>(args.scale) + (args.scale_per_sample ? n * columns() : 0);
      for (int64_t i = 0; i < shape.out_size[2]; i++) w.scale[i] = scale;
      e.scale = w.scale;
    }
    e.bias = static_cast<const float*>(args.bias);
    e.slopes = static_cast<const float*>(args.slopes);
    e.activation = args.activation;
    e.negative_slope = static_cast<float>(args.negative_slope);
    e.moments = w.moments;
    int64_t from[3] = {0, 0, 0}, count[3] = {shape.out_size[0], shape.out_size[1], shape.out_size[2]};
    from[axis] = begin;
    count[axis] = size;
    int64_t gathered = 0;
    for (int64_t d = 0; d < count[0]; d++)
      for (int64_t h = 0; h < count[1]; h++) {
        const int64_t row = (d + (axis == 0 ? 0 : first[0])) * length(1) + h + (axis == 1 ? 0 : first[1]);
        finish_line(n, from[0] + d, from[1] + h, w.sums + (row * length(2) + first[2]) * columns(), e, w);
        if (!e.moments) continue;
        box_moments.add(task, 0, static_cast<int>(columns()), gathered, *e.moments);
        gathered += shape.out_size[2];
      }
  }

  int64_t band_size(int64_t task) const { return smaller(band, shape.out_size[axis] - task % bands * band); }

  void run_band(int64_t task, Work& w) const {
    const int64_t n = task / bands, begin = task % bands * band, size = band_size(task);
    std::memset(w.sums, 0, band_sums() * sizeof(float));
    // Input indices along the axis any of whose taps falls into the band.
    const int64_t low = begin + first[axis] - base[axis], reach = (shape.kernel[axis] - 1) * shape.dilation[axis];
    const int64_t from = larger(0, low - reach <= 0 ? 0 : ceil_div(low - reach, step[axis]));
    const int64_t to = low + size <= 0 ? 0 : smaller(shape.in_size[axis], (low + size - 1) / step[axis] + 1);
    int64_t slab = 1;
    for (int x = axis + 1; x < 3; x++) slab *= shape.in_size[x];
    for (int64_t pixel = from * slab; pixel < to * slab; pixel += kChunk) {
      const int64_t count = smaller(kChunk, to * slab - pixel);
      multiply(n, pixel, count, w);
      add(pixel, count, begin, size, w);
    }
    finish(task, n, begin, size, w);
  }

  void run() {
    const int64_t tasks = shape.batch * bands;
    if (args.mean) {
      void* partial = scratch(Scratch::shared, BoxMoments::size(tasks, columns()) * sizeof(double));
      box_moments = {static_cast<double*>(partial), columns()};
    }
    const auto prepare = [&](Work& w) {
      for (int64_t row = 0; row < layout.filter_rows; row++) {
        const int64_t tap[2] = {row / shape.kernel[1] * shape.dilation[0], row % shape.kernel[1] * shape.dilation[1]};
        w.filter_rows[row] = {tap[axis], (tap[0] * length(1) + tap[1]) * length(2) * columns()};
      }
    };
    for_each_task(
        tasks, [&](Arena& arena) { return take(arena); }, prepare, [&](int64_t task, Work& w) { run_band(task, w); });
    if (!args.mean) return;
    const int64_t others = product(shape.out_size) / shape.out_size[axis];
    box_moments.finish(
        tasks, [&](int64_t task) { return band_size(task) * others; }, static_cast<float*>(args.mean),
        static_cast<float*>(args.var));
  }
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
