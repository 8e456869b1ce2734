// Forward; the method stands in conv_winograd.h.
#include "cpu/conv_winograd.h"

#include <utility>

#include "cpu/ahead.h"
#include "cpu/conv_tile.h"

namespace gencore::GENCORE_ISA {

namespace {

// Tiles of a box: enough that the filters are worth fetching, more where these outgrow the cache that threads share;
// few enough that V and the sums stay near; and the same number for each thread. Where all tiles are few, each thread
// should have some; but where V is large so are the filters, and threads share the blocks of channels of one box.
constexpr int64_t kTiles = 32, kTilesOfLarge = 72, kLargeFilters = 32 * 1024 * 1024, kFewestOfThread = 12;
// Where V is more than that, it is made for one row of sums at a time, which all output channels meet; the sums of all
// of these wait for the last row. V is then read from the cache, and the sums, which are fewer bytes by far than V read
// once for every block of channels, are written and read once.
constexpr int64_t kWholeBytes = 1024 * 1024;
constexpr int64_t kPanelBytes = 384 * 1024;  // that many are walked once for every dozen tiles

// The outputs of one vector of columns of a tile.
template <class R, class S>
GENCORE_INLINE void transform_output(const float* m, int64_t sum_stride, vfloat (&y)[R::kOutputs][S::kOutputs]) {
  vfloat half[R::kOutputs][S::kSums];
  for (int j = 0; j < S::kSums; j++) {
    vfloat sums[R::kSums], out[R::kOutputs];
    for (int i = 0; i < R::kSums; i++) sums[i] = load(m + (i * S::kSums + j) * sum_stride);
    R::outputs(sums, out);
    for (int i = 0; i < R::kOutputs; i++) half[i][j] = out[i];
  }
  for (int i = 0; i < R::kOutputs; i++) S::outputs(half[i], y[i]);
}

// R is the scheme down the rows and S that along the columns.
template <class R, class S>
struct WinogradForward {
  static constexpr int kInputs = R::kInputs * S::kInputs, kValues = R::kValues * S::kValues,
                       kSums = R::kSums * S::kSums, kOutputs = R::kOutputs * S::kOutputs,
                       kPairs = R::kPairs * S::kPairs;

  // Pairs of a row that come before pair p in its sum; and the most that one sum has.
  static constexpr int place(int p) {
    int before = 0;
    for (int q = 0; q < p; q++) before += R::kSum[q] == R::kSum[p];
    return before;
  }
  static constexpr int most_rows() {
    int most = 0;
    for (int p = 0; p < R::kPairs; p++) most = place(p) + 1 > most ? place(p) + 1 : most;
    return most;
  }

  const ConvForwardArgs& args;
  const ConvShape& shape;
  Geometry g, depth;  // of the tiles, and along the depth
  WinogradLayout layout;
  Boxes boxes;
  int64_t capacity, v_capacity, splits;  // output tiles and input tiles of a box
  int64_t v_row, v_stride, m_stride;     // the latter, of values and sums, spread over the sets of the caches
  bool rows_apart;                       // V is made for one row of sums at a time
  int64_t values, sum_blocks;            // that v has, and blocks that m has
  const float* zeros;
  int finite = 1;

  struct Work {            // one thread's arrays
    Ahead x, y;            // the input of a later box, and the output of this one
    const float** rows;    // [input][capacity]
    const float** v_rows;  // [value][v_capacity]: of v
    float* v;              // [value][slot of the plane][tile of the plane][channels]
    float* m;              // [block][sum][capacity][columns of a block]
    float *bias, *slopes;
    float *staged_x, *staged_y;
  };

  Work take(Arena& arena) const {
    Work w{};
    w.rows = arena.take<const float*>(kInputs * capacity);
    w.v_rows = arena.take<const float*>(values * v_capacity);
    w.v = arena.take<float>(values * v_stride);
    w.m = arena.take<float>(sum_blocks * kSums * m_stride);
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
    g = tile_geometry<R, S>(shape, args.transposed, arena);
    depth = depth_geometry(shape, args.transposed, arena);
    layout = {shape.out_channels, shape.in_channels, shape.kernel[0] * kPairs};
    const int64_t pixel = shape.in_channels * static_cast<int64_t>(sizeof(float));
    const bool flat = shape.kernel[0] == 1 && shape.in_size[0] == 1 && shape.out_size[0] == 1;
    const bool large = layout.size() * static_cast<int64_t>(sizeof(float)) > kLargeFilters;
    const int64_t wanted = large ? kTilesOfLarge : kTiles;
    rows_apart = flat && S::kTaps > 1 && wanted * kValues * pixel > kWholeBytes;
    values = rows_apart ? most_rows() * S::kValues : kValues;
    const int64_t tiles = shape.batch * product(g.grid), threads = num_threads();
    const int64_t whole_boxes = ceil_div(tiles, wanted);
    const bool one = rows_apart && whole_boxes == 1 && layout.blocks() >= threads;
    const int64_t rounds = larger(rows_apart ? 1 : 2, ceil_div(whole_boxes, threads));
    const int64_t tiles_of_box = one ? tiles : larger(kFewestOfThread, ceil_div(tiles, rounds * threads));
    boxes = cut_into_boxes(shape.batch, g.grid, tiles_of_box, false, false);
    const int64_t of_plane = boxes.step[0] * boxes.step[2] * boxes.step[3];
    capacity = of_plane * boxes.step[1];
    v_capacity = of_plane * Planes::most_slots(shape, args.transposed, boxes.step[1]);
    v_row = ceil_div(shape.in_channels, kLanes) * kLanes;
    v_stride = v_capacity * v_row + 64 / sizeof(float);
    m_stride = capacity * WinogradLayout::block + 64 / sizeof(float);
    splits = smaller(layout.blocks(), ceil_div(2 * num_threads(), boxes.number));
    sum_blocks = rows_apart ? blocks_of_task() : 1;
  }

  // The rows of the inputs of a plane's tiles.
  void list_tiles(const Box& one, Work& w) const {
    PixelStrides strides = channels_last_strides(shape.in_channels, shape.in_size);
    const float* x = args.x_channels_last ? static_cast<const float*>(args.x)
                                          : stage_input(g, args.x, one, w.staged_x, strides, args.x_phases);
    list_rows(g, g.tap, kInputs, one, false, x, strides, zeros, w.rows, capacity);
  }

  using Transform = void (*)(const float* const* rows, int64_t row_stride, int64_t channels, const float* style,
                             float* v, int64_t value_stride);
  template <int first, int last>
  static void transform_values(const float* const* rows, int64_t row_stride, int64_t channels, const float* style,
                               float* v, int64_t value_stride) {
    transform_input<R, S, first, last>(rows, row_stride, channels, style, v, value_stride, kLanes);
  }
  template <int... row>
  static Transform transform_of_row(int i, std::integer_sequence<int, row...>) {
    constexpr Transform all[] = {transform_values<row, row + 1>...};
    return all[i];
  }

  void transform_tiles(const Box& one, Transform transform, Work& w, float* v) const {
    for_each_run(one, false, [&](int64_t t, const Pixel& tile, int64_t count) {
      const float* style = static_cast<const float*>(args.style);
      if (style) style += tile.batch * shape.in_channels;
      for (const int64_t end = t + count; t < end; t++)
        transform(w.rows + t, capacity, shape.in_channels, style, v + t * v_row, v_stride);
    });
  }

  void list_values(int64_t at, int64_t tiles, bool inside, Work& w) const {
    for (int64_t i = 0; i < values; i++)
      for (int64_t t = at; t < at + tiles; t++)
        w.v_rows[i * v_capacity + t] = inside ? w.v + i * v_stride + t * v_row : zeros;
  }

  // All of V.
  void transform_inputs(const Box& box, Work& w) const {
    const Planes planes(depth, box.origin[0], box.count[0]);
    const int64_t tiles = plane_of(box, 0).pixels();
    for (int64_t p = 0; p < planes.number; p++) {
      const int64_t plane = planes.first + p, at = planes.slot(p) * tiles;
      const bool inside = plane >= 0 && plane < shape.in_size[0];
      list_values(at, tiles, inside, w);
      if (!inside) continue;
      list_tiles(plane_of(box, plane), w);
      transform_tiles(plane_of(box, plane), transform_values<0, R::kValues>, w, w.v + at * v_row);
    }
  }

  // The sums of row i, of a box and of one phase along the depth, for one block of channels.
  void multiply_row(int i, const Phase& phase, int64_t b, const Box& box, const Work& w, float* m) const {
    const int vectors = layout.vectors(b);
    const int64_t width = vectors * kLanes, panel = layout.length * width;
    const Planes planes(depth, box.origin[0], box.count[0]);
    const int64_t tiles_of_plane = plane_of(box, 0).pixels();
    const float* panels = static_cast<const float*>(args.packed) + layout.offset(b);
    Epilogue<float> e{};
    // No shorter than the root of all: so many sums of runs are added one after another, too.
    e.longest_run = R::kLongestRun;
    while (e.longest_run * e.longest_run < layout.length) e.longest_run *= 2;
    for (int j = 0; j < S::kSums; j++) {
      e.partial = m + (i * S::kSums + j) * m_stride;
      e.resume = false;
      int64_t count = 0;
      Segment<float> segments[4 * kMostDepth];
      for (int64_t t = phase.tap_begin; t < phase.tap_begin + phase.tap_count; t++) {
        const int64_t shift = planes.shift(depth, depth.tap[t]) * tiles_of_plane;
        const float* filters = panels + depth.tap[t].index * kPairs * panel;
        for (int p = 0; p < R::kPairs; p++)
          for (int q = 0; q < S::kPairs; q++)
            if (R::kSum[p] == i && S::kSum[q] == j) {
              const int row = rows_apart ? place(p) : R::kValue[p];
              segments[count++] = {w.v_rows + (row * S::kValues + S::kValue[q]) * v_capacity + shift,
                                   filters + (p * S::kPairs + q) * panel, zeros, 0, layout.length};
            }
        // What comes next would push these panels out of the cache, which every tile meets.
        if (count * panel * static_cast<int64_t>(sizeof(float)) < kPanelBytes) continue;
        run_block<float, false>(segments, count, box.pixels(), vectors, e);
        e.resume = true;
        count = 0;
      }
      if (count > 0 || !e.resume) run_block<float, false>(segments, count, box.pixels(), vectors, e);
      const int64_t call = b % blocks_of_task() * kSums + i * S::kSums + j;
      w.x.ask(call);
      w.y.ask(call);
    }
  }

  // Blocks of channels that a task has, at most.
  int64_t blocks_of_task() const { return ceil_div(layout.blocks(), splits); }

  // Sets out what a task asks for.
  void look_ahead(const Box& box, int64_t task, Work& w) const {
    w.x = w.y = {};
    if (shape.in_size[0] > 1 || shape.out_size[0] > 1 || args.x_phases > 1 || args.y_phases > 1) return;
    const int64_t calls = kSums * blocks_of_task(), later = (task + num_threads()) / splits;
    if (later > task / splits && later < boxes.number)
      w.x = Ahead(args.x, args.x_channels_last, shape.in_channels, shape.in_size,
                  input_box(g, box_at(boxes, shape.batch, g.grid, later)), calls);
    w.y = Ahead(args.y, args.y_channels_last, shape.out_channels, shape.out_size, output_box(g, box), calls);
  }

  // The blocks of channels from `first` to `last` of a box.
  bool run_blocks(const Box& box, int64_t first, int64_t last, Work& w) const {
    bool finite = true;
    if (!rows_apart) {
      transform_inputs(box, w);
      for (int64_t b = first; b < last; b++) finite &= finish_block(b, box, w, w.m, true);
      return finite;
    }
    list_tiles(box, w);
    list_values(0, box.pixels(), true, w);
    for (int i = 0; i < R::kSums; i++) {
      for (int p = 0; p < R::kPairs; p++)
        if (R::kSum[p] == i)
          transform_tiles(box, transform_of_row(R::kValue[p], std::make_integer_sequence<int, R::kValues>{}), w,
                          w.v + place(p) * S::kValues * v_stride);
      for (int64_t b = first; b < last; b++)
        multiply_row(i, depth.phase[0], b, box, w, w.m + (b - first) * kSums * m_stride);
    }
    for (int64_t b = first; b < last; b++)
      finite &= finish_block(b, box, w, w.m + (b - first) * kSums * m_stride, false);
    return finite;
  }

  // All outputs of a box for one block of channels, whose sums are m, or are yet to be made there.
  bool finish_block(int64_t b, const Box& box, Work& w, float* m, bool multiply) const {
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
                       out_box, channel, e.channels, w.staged_y, WinogradLayout::block, args.y_phases);
    }
    vfloat rest{};
    for (int64_t p = 0; p < depth.phases; p++) {
      for (int i = 0; multiply && i < R::kSums; i++) multiply_row(i, depth.phase[p], b, box, w, m);
      for (int64_t q = 0; q < box.count[0]; q++) {
        const int64_t plane = (box.origin[0] + q) * g.output_step[0] + depth.phase[p].first[0];
        if (plane >= shape.out_size[0]) break;
        const float* sums = m + q * tiles_of_plane * width;
        for_each_run(plane_of(box, plane), false, [&](int64_t i, Pixel tile, int64_t count) {
          for (int64_t j = 0; j < count; j++, tile.at[2]++)
            rest += finish_tile(tile, sums + (i + j) * width, channel, vectors, y, strides, e);
        });
      }
    }
    if (!args.y_channels_last)
      copy_box<false>(static_cast<float*>(args.y), shape.out_channels, shape.out_size, out_box, channel, e.channels,
                      w.staged_y, WinogradLayout::block, args.y_phases);
    return horizontal_sum(rest) == 0;
  }

  // Writes the outputs of one tile, whose plane is that of the output; what is returned is zero where all sums are
  // finite, and not a number elsewhere.
  vfloat finish_tile(const Pixel& tile, const float* m, int64_t channel, int vectors, float* y,
                     const PixelStrides& strides, Epilogue<float>& e) const {
    const int64_t row = tile.at[1] * R::kOutputs, column = tile.at[2] * S::kOutputs;
    const int rows = static_cast<int>(smaller(R::kOutputs, shape.out_size[1] - row));
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
      vfloat sum[R::kOutputs][S::kOutputs];
      transform_output<R, S>(m + first, m_stride, sum);
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
          look_ahead(box, task, w);
          if (!run_blocks(box, blocks * split / splits, blocks * (split + 1) / splits, w))
            __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
        });
  }
};

}  // namespace

void conv_winograd(const ConvForwardArgs& args) {
  with_schemes(args.winograd, args.shape.kernel, args.transposed, [&](auto rows, auto columns) {
    WinogradForward<decltype(rows), decltype(columns)> forward{args, args.shape, {}, {}, {},    {}, 0, 0,
                                                               0,    0,          0,  0,  false, 0,  0, nullptr};
    forward.run();
    *args.finite = forward.finite != 0;
  });
}

}  // namespace gencore::GENCORE_ISA
