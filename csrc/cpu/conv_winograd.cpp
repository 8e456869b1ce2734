// Convolution with a 3x3 filter by Winograd's minimal filtering F(2x2, 3x3): sixteen products where the sums have
// thirty-six (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, section 4.1).
//
// Of each 2x2 tile of outputs the 4x4 inputs under it become V = B' d B, and a filter becomes U = G g G'; an output
// channel is then A' (sum over input channels of U * V) A, where B and A hold only zeros and ones of either sign. The
// sums over channels are sixteen products of matrices, [tiles, C] by [C, O], through the register tile of tile.h. A
// thread makes them for a box of tiles whose V stays in its second-level cache.
//
// The rounding error is that of direct sums: the transforms cost about one bit, and the sums are nine times shorter. In
// one thing the result differs: where an input is infinite or not a number, so are all outputs of its tile, not only
// those under the filter. `finite` says that this happened, and the caller takes conv_forward instead.
#include "cpu/conv_tile.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

constexpr int kPoints = 16;
// Sums this short keep the error at that of PyTorch's direct sums.
constexpr int64_t kWinogradRun = 64;
// What a box may take of the second-level cache.
constexpr int64_t kBoxBytes = 1280 * 1024, kFewestTiles = 12, kMostTiles = 192;

// Panels [block of columns][point][length][columns of the block].
struct WinogradLayout {
  int64_t columns, length;
  static constexpr int64_t block = kMaxVectors * kLanes;
  int64_t blocks() const { return ceil_div(columns, block); }
  int vectors(int64_t b) const { return static_cast<int>(ceil_div(smaller(columns - b * block, block), kLanes)); }
  int64_t offset(int64_t b) const { return b * block * length * kPoints; }
  int64_t size() const { return ceil_div(columns, kLanes) * kLanes * length * kPoints; }
};

// --- the filter ------------------------------------------------------------------------------------------------------

// U of one row of the reduction, from its nine taps of `width` columns.
GENCORE_INLINE void transform_filter(const float* const (&taps)[9], int64_t width, float* panel, int64_t point_stride) {
  for (int64_t n = 0; n < width; n += kLanes) {
    vfloat half[4][3];
    for (int j = 0; j < 3; j++) {
      const vfloat a = load(taps[j] + n), b = load(taps[3 + j] + n), c = load(taps[6 + j] + n);
      half[0][j] = a;
      half[1][j] = 0.5f * ((a + c) + b);
      half[2][j] = 0.5f * ((a + c) - b);
      half[3][j] = c;
    }
    for (int i = 0; i < 4; i++) {
      const vfloat a = half[i][0], b = half[i][1], c = half[i][2];
      float* to = panel + 4 * i * point_stride + n;
      store(to, a);
      store(to + point_stride, 0.5f * ((a + c) + b));
      store(to + 2 * point_stride, 0.5f * ((a + c) - b));
      store(to + 3 * point_stride, c);
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

Taps gather_taps(const ConvPackArgs& args, const float* from, int64_t column_stride, int64_t length_stride,
                 int64_t columns, int64_t rows, int64_t width, float* to) {
  const int64_t down = args.kernel_stride[1], right = args.kernel_stride[2];
  if (columns < width) std::memset(to, 0, 9 * kPackRows * width * sizeof(float));
  if (right == 1 && down == 3 && length_stride == 9) {
    transpose(from, column_stride, to, width, columns, 9 * rows);
    return {to, 9 * width, width};
  }
  const Taps taps{to, width, kPackRows * width};
  for (int64_t t = 0; t < 9; t++) {
    const float* tap = from + t / 3 * down + t % 3 * right;
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

void pack(const ConvPackArgs& args, const WinogradLayout& layout) {
  const int64_t column_stride = args.columns_first ? args.stride0 : args.stride1;
  const int64_t length_stride = args.columns_first ? args.stride1 : args.stride0;
  const int64_t cuts = ceil_div(layout.length, kPackRows);
  parallel_for(0, layout.blocks() * cuts, 1, [&](int64_t begin, int64_t end) {
    Arena arena{static_cast<char*>(scratch(Scratch::worker, 9 * kPackRows * WinogradLayout::block * sizeof(float))), 0};
    float* local = arena.take<float>(9 * kPackRows * WinogradLayout::block);
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / cuts, width = layout.vectors(b) * kLanes, column = b * WinogradLayout::block;
      const int64_t first = task % cuts * kPackRows, rows = smaller(kPackRows, layout.length - first);
      const Taps taps =
          gather_taps(args, static_cast<const float*>(args.weight) + column * column_stride + first * length_stride,
                      column_stride, length_stride, smaller(layout.columns - column, width), rows, width, local);
      float* to = static_cast<float*>(args.packed) + layout.offset(b) + first * width;
      for (int64_t k = 0; k < rows; k++, to += width) {
        const float* row[9];
        // Transposed, an output meets the taps in descending order.
        for (int t = 0; t < 9; t++) row[t] = taps.at(k, args.columns_first ? t : 8 - t);
        transform_filter(row, width, to, layout.length * width);
      }
    }
  });
}

// --- the image -------------------------------------------------------------------------------------------------------

// V of one tile: rows[point * stride] are its inputs.
GENCORE_INLINE void transform_input(const float* const* rows, int64_t row_stride, int64_t channels, float* v,
                                    int64_t point_stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, channels - c));
    vfloat half[4][4];
    for (int j = 0; j < 4; j++) {
      vfloat d[4];
      for (int i = 0; i < 4; i++) d[i] = load_lanes(rows[(4 * i + j) * row_stride] + c, n);
      half[0][j] = d[0] - d[2];
      half[1][j] = d[1] + d[2];
      half[2][j] = d[2] - d[1];
      half[3][j] = d[1] - d[3];
    }
    for (int i = 0; i < 4; i++) {
      float* to = v + 4 * i * point_stride + c;
      store(to, half[i][0] - half[i][2]);
      store(to + point_stride, half[i][1] + half[i][2]);
      store(to + 2 * point_stride, half[i][2] - half[i][1]);
      store(to + 3 * point_stride, half[i][1] - half[i][3]);
    }
  }
}

// The 2x2 outputs of one vector of columns of a tile.
GENCORE_INLINE void transform_output(const float* m, int64_t point_stride, vfloat (&y)[2][2]) {
  vfloat half[2][4];
  for (int j = 0; j < 4; j++) {
    vfloat p[4];
    for (int i = 0; i < 4; i++) p[i] = load(m + (4 * i + j) * point_stride);
    half[0][j] = (p[0] + p[1]) + p[2];
    half[1][j] = (p[1] - p[2]) - p[3];
  }
  for (int i = 0; i < 2; i++) {
    y[i][0] = (half[i][0] + half[i][1]) + half[i][2];
    y[i][1] = (half[i][1] - half[i][2]) - half[i][3];
  }
}

struct WinogradForward {
  const ConvForwardArgs& args;
  const ConvShape& shape;
  Geometry g;  // of the tiles: a grid of "outputs" at a stride of 2, under a filter of 4x4
  WinogradLayout layout;
  Boxes boxes;
  int64_t capacity, splits;
  int64_t v_row, v_point, m_point;  // strides; the points' lie in different sets of the caches
  const float* zeros;
  int64_t next_task = 0;
  int finite = 1;

  struct Work {  // one thread's arrays
    Pixel* tiles;
    const float** rows;    // [point][capacity]: inputs
    const float** v_rows;  // [point][capacity]: of v
    float* v;              // [point][capacity][channels]
    float* m;              // [point][capacity][columns of a block]
    float *bias, *slopes;
    float *staged_x, *staged_y;
  };

  Work take(Arena& arena) const {
    Work w{};
    w.tiles = arena.take<Pixel>(capacity);
    w.rows = arena.take<const float*>(kPoints * capacity);
    w.v_rows = arena.take<const float*>(kPoints * capacity);
    w.v = arena.take<float>(kPoints * v_point);
    w.m = arena.take<float>(kPoints * m_point);
    w.bias = arena.take<float>(WinogradLayout::block);
    w.slopes = arena.take<float>(WinogradLayout::block);
    if (!args.x_channels_last)
      w.staged_x =
          arena.take<float>(boxes.step[0] * input_extent(g, boxes, 1) * input_extent(g, boxes, 2) * shape.in_channels);
    if (!args.y_channels_last) w.staged_y = arena.take<float>(4 * capacity * WinogradLayout::block);
    return w;
  }

  void cut(Arena& arena) {
    ConvShape tiles = shape;
    for (int a = 1; a < 3; a++) {
      tiles.kernel[a] = 4;
      tiles.stride[a] = 2;
      tiles.out_size[a] = ceil_div(shape.out_size[a], 2);
      if (args.transposed) tiles.padding[a] = 2 - shape.padding[a];
    }
    g = make_geometry(tiles, false, arena);
    for (int a = 1; a < 3; a++) {
      g.output_step[a] = 2;
      g.shape.out_size[a] = shape.out_size[a];
    }
    layout = {shape.out_channels, shape.in_channels};
    const int64_t room = kBoxBytes / (kPoints * static_cast<int64_t>(sizeof(float)) *
                                      (shape.in_channels + smaller(WinogradLayout::block, shape.out_channels)));
    const int64_t sharing = ceil_div(shape.batch * product(g.grid), 2 * num_threads());
    const int64_t tiles_of_box = larger(kFewestTiles, smaller(smaller(kMostTiles, room), sharing));
    boxes = cut_into_boxes(shape.batch, g.grid, tiles_of_box, false, false);
    capacity = boxes.step[0] * boxes.step[2] * boxes.step[3];
    v_row = ceil_div(shape.in_channels, kLanes) * kLanes;
    v_point = capacity * v_row + 64 / sizeof(float);
    m_point = capacity * WinogradLayout::block + 64 / sizeof(float);
    splits = smaller(layout.blocks(), ceil_div(2 * num_threads(), boxes.number));
  }

  void transform_inputs(const Box& box, Work& w) const {
    list_pixels(box, false, w.tiles);
    PixelStrides strides = channels_last_strides(shape.in_channels, shape.in_size);
    const float* x =
        args.x_channels_last ? static_cast<const float*>(args.x) : stage_input(g, args.x, box, w.staged_x, strides);
    const int64_t tiles = box.pixels();
    list_rows(g, g.tap, kPoints, w.tiles, tiles, x, strides, zeros, w.rows, capacity);
    for (int64_t t = 0; t < tiles; t++)
      transform_input(w.rows + t, capacity, shape.in_channels, w.v + t * v_row, v_point);
  }

  const float* padded(const void* from, int64_t channel, int channels, float* to) const {
    if (!from) return nullptr;
    std::memset(to, 0, WinogradLayout::block * sizeof(float));
    std::memcpy(to, static_cast<const float*>(from) + channel, channels * sizeof(float));
    return to;
  }

  // All outputs of a box for one block of channels.
  bool run_block_of_columns(int64_t b, const Box& box, Work& w) const {
    const int vectors = layout.vectors(b);
    const int64_t width = vectors * kLanes, channel = b * WinogradLayout::block, tiles = box.pixels();
    const float* panels = static_cast<const float*>(args.packed) + layout.offset(b);
    Epilogue<float> e{};
    e.longest_run = kWinogradRun;
    for (int p = 0; p < kPoints; p++) {
      const Segment<float> segment{w.v_rows + p * capacity, panels + p * layout.length * width, nullptr, 0,
                                   layout.length};
      e.partial = w.m + p * m_point;
      run_block<float, false>(&segment, 1, tiles, vectors, e);
    }

    e.channels = static_cast<int>(smaller(layout.columns - channel, width));
    e.bias = padded(args.bias, channel, e.channels, w.bias);
    e.slopes = padded(args.slopes, channel, e.channels, w.slopes);
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
      y = w.staged_y - out_box.batch * strides.batch;
      for (int a = 0; a < 3; a++) y -= out_box.origin[a] * strides.axis[a];
      if (e.has_residual)
        copy_box<true>(static_cast<float*>(const_cast<void*>(args.residual)), shape.out_channels, shape.out_size,
                       out_box, channel, e.channels, w.staged_y, WinogradLayout::block);
    }
    vfloat rest{};
    for (int64_t t = 0; t < tiles; t++)
      rest += finish_tile(w.tiles[t], w.m + t * width, channel, vectors, y, strides, e);
    if (!args.y_channels_last)
      copy_box<false>(static_cast<float*>(args.y), shape.out_channels, shape.out_size, out_box, channel, e.channels,
                      w.staged_y, WinogradLayout::block);
    return horizontal_sum(rest) == 0;
  }

  // Writes the outputs of one tile; what is returned is zero where all sums are finite, and not a number elsewhere.
  vfloat finish_tile(const Pixel& tile, const float* m, int64_t channel, int vectors, float* y,
                     const PixelStrides& strides, Epilogue<float>& e) const {
    const int64_t row = tile.at[1] * 2, column = tile.at[2] * 2;
    const int rows = static_cast<int>(smaller(2, shape.out_size[1] - row));
    const int columns = static_cast<int>(smaller(2, shape.out_size[2] - column));
    const float* scale = static_cast<const float*>(args.scale);
    if (args.scale_per_sample) scale += tile.batch * shape.out_channels;
    e.scale = args.scale ? &scale : nullptr;
    e.scale_channel = channel;
    float* corner = y + tile.batch * strides.batch + tile.at[0] * strides.axis[0] + row * strides.axis[1] +
                    column * strides.axis[2];
    const bool late = is_transcendental(e.activation);
    vfloat rest{};
    for (int v = 0; v < vectors; v++) {
      const int first = v * kLanes, n = static_cast<int>(smaller(kLanes, e.channels - first));
      vfloat sum[2][2];
      transform_output(m + first, m_point, sum);
      for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
          float* out = corner + i * strides.axis[1] + j * strides.axis[2] + first;
          rest += sum[i][j] * 0.0f;
          const vfloat value = apply_scale_bias_residual(e, sum[i][j], 0, out, first, n);
          store_lanes(out, late ? transcendental(value, e.activation) : apply_simple_activation(e, value, first), n);
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
    std::memset(const_cast<float*>(zeros), 0, shape.in_channels * sizeof(float));
    const int64_t tasks = boxes.number * splits;
    parallel_for(0, smaller(num_threads(), tasks), 1, [&](int64_t, int64_t) {
      Arena arena;
      take(arena);
      arena = {static_cast<char*>(scratch(Scratch::worker, arena.used)), 0};
      Work w = take(arena);
      for (int64_t p = 0; p < kPoints; p++)
        for (int64_t t = 0; t < capacity; t++) w.v_rows[p * capacity + t] = w.v + p * v_point + t * v_row;
      while (true) {
        const int64_t task = __atomic_fetch_add(&next_task, 1, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        const Box box = box_at(boxes, shape.batch, g.grid, task / splits);
        const int64_t split = task % splits, blocks = layout.blocks();
        transform_inputs(box, w);
        for (int64_t b = blocks * split / splits; b < blocks * (split + 1) / splits; b++)
          if (!run_block_of_columns(b, box, w)) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
      }
    });
  }
};

}  // namespace

void conv_winograd_pack(const ConvPackArgs& args) {
  const WinogradLayout layout{args.columns_first ? args.size0 : args.size1,
                              args.columns_first ? args.size1 : args.size0};
  *args.bytes = layout.size() * static_cast<int64_t>(sizeof(float));
  if (args.packed) pack(args, layout);
}

void conv_winograd(const ConvForwardArgs& args) {
  WinogradForward forward{args, args.shape, {}, {}, {}, 0, 0, 0, 0, 0, nullptr};
  forward.run();
  *args.finite = forward.finite != 0;
}

}  // namespace gencore::GENCORE_ISA
