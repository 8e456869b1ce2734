// Forward and packing; the method stands in conv_winograd.h.
#include "cpu/conv_winograd.h"

#include "cpu/conv_tile.h"

namespace gencore::GENCORE_ISA {

namespace {

// Tiles of a box: enough that the filters are worth fetching, few enough that V mostly stays in the second-level cache.
// Where all tiles are few, each thread should have some.
constexpr int64_t kFewestTiles = 96, kMostTiles = 192, kFewestOfThread = 12;
constexpr int64_t kPanelBytes = 384 * 1024;  // that many are walked once for every dozen tiles

// Panels [block of columns][tap along the depth][pair of pairs][length][columns of the block].
struct WinogradLayout {
  int64_t columns, length, pairs;  // pairs: those of all taps along the depth
  static constexpr int64_t block = kMaxVectors * kLanes;
  int64_t blocks() const { return ceil_div(columns, block); }
  int vectors(int64_t b) const { return static_cast<int>(ceil_div(smaller(columns - b * block, block), kLanes)); }
  int64_t offset(int64_t b) const { return b * block * length * pairs; }
  int64_t size() const { return ceil_div(columns, kLanes) * kLanes * length * pairs; }
};

// --- the filter ------------------------------------------------------------------------------------------------------

// U of one row of the reduction, from its taps of `width` columns.
template <class S>
GENCORE_INLINE void transform_filter(const float* const* taps, int64_t width, float* panel, int64_t pair_stride) {
  for (int64_t n = 0; n < width; n += kLanes) {
    vfloat half[S::kPairs][S::kTaps];
    for (int j = 0; j < S::kTaps; j++) {
      vfloat g[S::kTaps], u[S::kPairs];
      for (int i = 0; i < S::kTaps; i++) g[i] = load(taps[i * S::kTaps + j] + n);
      S::filter(g, u);
      for (int i = 0; i < S::kPairs; i++) half[i][j] = u[i];
    }
    for (int i = 0; i < S::kPairs; i++) {
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

template <int side>
Taps gather_taps(const ConvPackArgs& args, const float* from, int64_t column_stride, int64_t length_stride,
                 int64_t columns, int64_t rows, int64_t width, float* to) {
  constexpr int number = side * side;
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

template <class S>
void pack(const ConvPackArgs& args) {
  constexpr int number = S::kTaps * S::kTaps;
  constexpr int64_t local_size = number * kPackRows * WinogradLayout::block;
  const WinogradLayout layout{args.columns_first ? args.size0 : args.size1,
                              args.columns_first ? args.size1 : args.size0, args.kernel[0] * S::kPairs * S::kPairs};
  *args.bytes = layout.size() * static_cast<int64_t>(sizeof(float));
  if (!args.packed) return;
  const int64_t column_stride = args.columns_first ? args.stride0 : args.stride1;
  const int64_t length_stride = args.columns_first ? args.stride1 : args.stride0;
  const int64_t cuts = ceil_div(layout.length, kPackRows);
  // A transposed 3x3 at a stride of 1 is the convolution with the filter turned round.
  const bool turned = args.winograd != Winograd::strided && !args.columns_first;
  parallel_for(0, layout.blocks() * cuts * args.kernel[0], 1, [&](int64_t begin, int64_t end) {
    float* local = static_cast<float*>(scratch(Scratch::worker, local_size * sizeof(float)));
    for (int64_t task = begin; task < end; task++) {
      const int64_t depth = task % args.kernel[0], cut = task / args.kernel[0] % cuts, b = task / args.kernel[0] / cuts;
      const int64_t width = layout.vectors(b) * kLanes, column = b * WinogradLayout::block;
      const int64_t first = cut * kPackRows, rows = smaller(kPackRows, layout.length - first);
      const float* from = static_cast<const float*>(args.weight) + column * column_stride + first * length_stride +
                          depth * args.kernel_stride[0];
      const Taps taps = gather_taps<S::kTaps>(args, from, column_stride, length_stride,
                                              smaller(layout.columns - column, width), rows, width, local);
      float* to = static_cast<float*>(args.packed) + layout.offset(b) +
                  (depth * S::kPairs * S::kPairs * layout.length + first) * width;
      for (int64_t k = 0; k < rows; k++, to += width) {
        const float* row[number];
        for (int t = 0; t < number; t++) row[t] = taps.at(k, turned ? number - 1 - t : t);
        transform_filter<S>(row, width, to, layout.length * width);
      }
    }
  });
}

// --- the image -------------------------------------------------------------------------------------------------------

// The outputs of one vector of columns of a tile.
template <class S>
GENCORE_INLINE void transform_output(const float* m, int64_t sum_stride, vfloat (&y)[S::kOutputs][S::kOutputs]) {
  vfloat half[S::kOutputs][S::kSums];
  for (int j = 0; j < S::kSums; j++) {
    vfloat sums[S::kSums], out[S::kOutputs];
    for (int i = 0; i < S::kSums; i++) sums[i] = load(m + (i * S::kSums + j) * sum_stride);
    S::outputs(sums, out);
    for (int i = 0; i < S::kOutputs; i++) half[i][j] = out[i];
  }
  for (int i = 0; i < S::kOutputs; i++) S::outputs(half[i], y[i]);
}

template <class S>
struct WinogradForward {
  static constexpr int kInputs = S::kInputs * S::kInputs, kValues = S::kValues * S::kValues,
                       kSums = S::kSums * S::kSums, kOutputs = S::kOutputs * S::kOutputs;

  const ConvForwardArgs& args;
  const ConvShape& shape;
  Geometry g, depth;  // of the tiles, and along the depth
  WinogradLayout layout;
  Boxes boxes;
  int64_t capacity, v_capacity, splits;  // output tiles and input tiles of a box
  int64_t v_row, v_stride, m_stride;     // the latter, of values and sums, spread over the sets of the caches
  const float* zeros;
  int finite = 1;

  struct Work {            // one thread's arrays
    const float** rows;    // [input][capacity]
    const float** v_rows;  // [value][v_capacity]: of v
    float* v;              // [value][slot of the plane][tile of the plane][channels]
    float* m;              // [sum][capacity][columns of a block]
    float *bias, *slopes;
    float *staged_x, *staged_y;
  };

  Work take(Arena& arena) const {
    Work w{};
    w.rows = arena.take<const float*>(kInputs * capacity);
    w.v_rows = arena.take<const float*>(kValues * v_capacity);
    w.v = arena.take<float>(kValues * v_stride);
    w.m = arena.take<float>(kSums * m_stride);
    w.bias = arena.take<float>(WinogradLayout::block);
    w.slopes = arena.take<float>(WinogradLayout::block);
    Boxes planes = boxes;
    planes.step[1] = 1;
    if (!args.x_channels_last) w.staged_x = arena.take<float>(most_input_pixels(g, planes) * shape.in_channels);
    if (!args.y_channels_last)
      w.staged_y = arena.take<float>(kOutputs * g.output_step[0] * capacity * WinogradLayout::block);
    return w;
  }

  void cut(Arena& arena) {
    g = tile_geometry<S>(shape, args.transposed, arena);
    depth = depth_geometry(shape, args.transposed, arena);
    layout = {shape.out_channels, shape.in_channels, shape.kernel[0] * S::kPairs * S::kPairs};
    const int64_t numbers =
        kValues * shape.in_channels * depth.input_step[0] + kSums * smaller(WinogradLayout::block, shape.out_channels);
    const int64_t room = S::kBoxBytes / (numbers * static_cast<int64_t>(sizeof(float)));
    const int64_t sharing = ceil_div(shape.batch * product(g.grid), 2 * num_threads());
    const int64_t tiles_of_box =
        smaller(larger(kFewestTiles, smaller(kMostTiles, room)), larger(kFewestOfThread, sharing));
    boxes = cut_into_boxes(shape.batch, g.grid, tiles_of_box, false, false);
    const int64_t of_plane = boxes.step[0] * boxes.step[2] * boxes.step[3];
    capacity = of_plane * boxes.step[1];
    v_capacity = of_plane * Planes::most_slots(shape, args.transposed, boxes.step[1]);
    v_row = ceil_div(shape.in_channels, kLanes) * kLanes;
    v_stride = v_capacity * v_row + 64 / sizeof(float);
    m_stride = capacity * WinogradLayout::block + 64 / sizeof(float);
    splits = smaller(layout.blocks(), ceil_div(2 * num_threads(), boxes.number));
  }

  void transform_inputs(const Box& box, Work& w) const {
    const Planes planes(depth, box.origin[0], box.count[0]);
    const int64_t tiles = plane_of(box, 0).pixels();
    for (int64_t p = 0; p < planes.number; p++) {
      const int64_t plane = planes.first + p, at = planes.slot(p) * tiles;
      const bool inside = plane >= 0 && plane < shape.in_size[0];
      for (int64_t i = 0; i < kValues; i++)
        for (int64_t t = 0; t < tiles; t++)
          w.v_rows[i * v_capacity + at + t] = inside ? w.v + i * v_stride + (at + t) * v_row : zeros;
      if (!inside) continue;
      const Box one = plane_of(box, plane);
      PixelStrides strides = channels_last_strides(shape.in_channels, shape.in_size);
      const float* x =
          args.x_channels_last ? static_cast<const float*>(args.x) : stage_input(g, args.x, one, w.staged_x, strides);
      list_rows(g, g.tap, kInputs, one, false, x, strides, zeros, w.rows, capacity);
      for_each_run(one, false, [&](int64_t t, const Pixel& tile, int64_t count) {
        const float* style = static_cast<const float*>(args.style);
        if (style) style += tile.batch * shape.in_channels;
        for (const int64_t end = t + count; t < end; t++)
          transform_input<S>(w.rows + t, capacity, shape.in_channels, style, w.v + (at + t) * v_row, v_stride, kLanes);
      });
    }
  }

  // All sums of a box and of one phase along the depth, for one block of channels.
  void multiply(const Phase& phase, int64_t b, const Box& box, Work& w) const {
    const int vectors = layout.vectors(b);
    const int64_t width = vectors * kLanes, panel = layout.length * width;
    const Planes planes(depth, box.origin[0], box.count[0]);
    const int64_t tiles_of_plane = plane_of(box, 0).pixels();
    const float* panels = static_cast<const float*>(args.packed) + layout.offset(b);
    Epilogue<float> e{};
    e.longest_run = S::kLongestRun;
    for (int i = 0; i < S::kSums; i++)
      for (int j = 0; j < S::kSums; j++) {
        e.partial = w.m + (i * S::kSums + j) * m_stride;
        e.resume = false;
        int64_t count = 0;
        Segment<float> segments[4 * kMostDepth];
        for (int64_t t = phase.tap_begin; t < phase.tap_begin + phase.tap_count; t++) {
          const int64_t shift = planes.shift(depth, depth.tap[t]) * tiles_of_plane;
          const float* filters = panels + depth.tap[t].index * S::kPairs * S::kPairs * panel;
          for (int p = 0; p < S::kPairs; p++)
            for (int q = 0; q < S::kPairs; q++)
              if (S::kSum[p] == i && S::kSum[q] == j)
                segments[count++] = {w.v_rows + (S::kValue[p] * S::kValues + S::kValue[q]) * v_capacity + shift,
                                     filters + (p * S::kPairs + q) * panel, zeros, 0, layout.length};
          // What comes next would push these panels out of the cache, which every tile meets.
          if (count * panel * static_cast<int64_t>(sizeof(float)) < kPanelBytes) continue;
          run_block<float, false>(segments, count, box.pixels(), vectors, e);
          e.resume = true;
          count = 0;
        }
        if (count > 0 || !e.resume) run_block<float, false>(segments, count, box.pixels(), vectors, e);
      }
  }

  // All outputs of a box for one block of channels.
  bool run_block_of_columns(int64_t b, const Box& box, Work& w) const {
    const int vectors = layout.vectors(b);
    const int64_t width = vectors * kLanes, channel = b * WinogradLayout::block;
    const int64_t tiles_of_plane = plane_of(box, 0).pixels();
    Epilogue<float> e{};
    e.channels = static_cast<int>(smaller(layout.columns - channel, width));
    e.bias = padded<float>(args.bias, channel, e.channels, w.bias);
    e.slopes = padded<float>(args.slopes, channel, e.channels, w.slopes);
    e.activation = args.activation;
    e.negative_slope = static_cast<float>(args.negative_slope);
    e.has_residual = args.residual != nullptr;
    const Box out_box = output_box(g, box);
    PixelStrides strides = channels_last_strides(shape.out_channels, shape.out_size);
    float* y = static_cast<float*>(args.y) + channel;
    if (args.y_channels_last) {
      e.residual = static_cast<const char*>(args.residual) - static_cast<char*>(args.y);
    } else {
      strides = channels_last_strides(WinogradLayout::block, out_box.count);
      y = whole_image(w.staged_y, out_box, strides);
      if (e.has_residual)
        copy_box<true>(static_cast<float*>(const_cast<void*>(args.residual)), shape.out_channels, shape.out_size,
                       out_box, channel, e.channels, w.staged_y, WinogradLayout::block);
    }
    vfloat rest{};
    for (int64_t p = 0; p < depth.phases; p++) {
      multiply(depth.phase[p], b, box, w);
      for (int64_t q = 0; q < box.count[0]; q++) {
        const int64_t plane = (box.origin[0] + q) * g.output_step[0] + depth.phase[p].first[0];
        if (plane >= shape.out_size[0]) break;
        const float* m = w.m + q * tiles_of_plane * width;
        for_each_run(plane_of(box, plane), false, [&](int64_t i, Pixel tile, int64_t count) {
          for (int64_t j = 0; j < count; j++, tile.at[2]++)
            rest += finish_tile(tile, m + (i + j) * width, channel, vectors, y, strides, e);
        });
      }
    }
    if (!args.y_channels_last)
      copy_box<false>(static_cast<float*>(args.y), shape.out_channels, shape.out_size, out_box, channel, e.channels,
                      w.staged_y, WinogradLayout::block);
    return horizontal_sum(rest) == 0;
  }

  // Writes the outputs of one tile, whose plane is that of the output; what is returned is zero where all sums are
  // finite, and not a number elsewhere.
  vfloat finish_tile(const Pixel& tile, const float* m, int64_t channel, int vectors, float* y,
                     const PixelStrides& strides, Epilogue<float>& e) const {
    const int64_t row = tile.at[1] * S::kOutputs, column = tile.at[2] * S::kOutputs;
    const int rows = static_cast<int>(smaller(S::kOutputs, shape.out_size[1] - row));
    const int columns = static_cast<int>(smaller(S::kOutputs, shape.out_size[2] - column));
    const float* scale = static_cast<const float*>(args.scale);
    if (args.scale_per_sample) scale += tile.batch * shape.out_channels;
    e.scale = args.scale ? &scale : nullptr;
    e.scale_channel = channel;
    float* corner = y + tile.batch * strides.batch + tile.at[0] * strides.axis[0] + row * strides.axis[1] +
                    column * strides.axis[2];
    const bool late = is_transcendental(e.activation);
    const float* noise = static_cast<const float*>(args.noise);
    if (noise)
      noise += (((args.noise_per_sample ? tile.batch : 0) * shape.out_size[0] + tile.at[0]) * shape.out_size[1] + row) *
                   shape.out_size[2] +
               column;
    const float gain = static_cast<float>(args.gain), clamp = static_cast<float>(args.clamp);
    vfloat rest{};
    for (int v = 0; v < vectors; v++) {
      const int first = v * kLanes, n = static_cast<int>(smaller(kLanes, e.channels - first));
      vfloat sum[S::kOutputs][S::kOutputs];
      transform_output<S>(m + first, m_stride, sum);
      for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
          float* out = corner + i * strides.axis[1] + j * strides.axis[2] + first;
          rest += sum[i][j] * 0.0f;
          vfloat value = apply_scale_bias_residual(e, sum[i][j], 0, out, first, n);
          if (noise) value += noise[i * shape.out_size[2] + j];
          value = late ? transcendental(value, e.activation) : apply_simple_activation(e, value, first);
          value *= gain;
          if (clamp >= 0) {  // what is not a number stays so
            value = value > clamp ? clamp + vfloat{} : value;
            value = value < -clamp ? -clamp + vfloat{} : value;
          }
          store_lanes(out, value, n);
        }
    }
    return rest;
  }

  void run() {
    Arena shared;
    for (int round = 0; round < 2; round++) {
      cut(shared);
      zeros = shared.take<float>(shape.in_channels);
      if (round == 0) shared = {static_cast<char*>(scratch(Scratch::shared, shared.used)), 0};
    }
    fill_geometry(g, false);
    fill_geometry(depth, args.transposed);
    std::memset(const_cast<float*>(zeros), 0, shape.in_channels * sizeof(float));
    const int64_t tasks = boxes.number * splits;
    for_each_task(
        tasks, [&](Arena& arena) { return take(arena); }, [](Work&) {},
        [&](int64_t task, Work& w) {
          const Box box = box_at(boxes, shape.batch, g.grid, task / splits);
          const int64_t split = task % splits, blocks = layout.blocks();
          transform_inputs(box, w);
          for (int64_t b = blocks * split / splits; b < blocks * (split + 1) / splits; b++)
            if (!run_block_of_columns(b, box, w)) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
        });
  }
};

template <class S>
bool forward(const ConvForwardArgs& args) {
  WinogradForward<S> forward{args, args.shape, {}, {}, {}, {}, 0, 0, 0, 0, 0, 0, nullptr};
  forward.run();
  return forward.finite != 0;
}

}  // namespace

void conv_winograd_pack(const ConvPackArgs& args) {
  const bool transposed = !args.columns_first;
  if (args.winograd == Winograd::unit)
    pack<Filter3>(args);
  else if (args.winograd == Winograd::unit_large)
    pack<Filter3Large>(args);
  else if (args.kernel[1] == 4)
    transposed ? pack<Transposed4>(args) : pack<Strided4>(args);
  else
    transposed ? pack<Transposed3>(args) : pack<Strided3>(args);
}

void conv_winograd(const ConvForwardArgs& args) {
  if (args.winograd == Winograd::unit)
    *args.finite = forward<Filter3>(args);
  else if (args.winograd == Winograd::unit_large)
    *args.finite = forward<Filter3Large>(args);
  else if (args.shape.kernel[1] == 4)
    *args.finite = args.transposed ? forward<Transposed4>(args) : forward<Strided4>(args);
  else
    *args.finite = args.transposed ? forward<Transposed3>(args) : forward<Strided3>(args);
}

}  // namespace gencore::GENCORE_ISA
