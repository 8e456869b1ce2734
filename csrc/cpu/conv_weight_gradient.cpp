#include "cpu/conv_fold.h"
#include "cpu/conv_outer.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

// Sums of one task, [tap][row][column], should stay in the second-level cache beside the pixels of one box.
constexpr int64_t kSumBytes = 384 * 1024;
constexpr int64_t kBoxPixels = 256;
constexpr int64_t kTablePointers = 8192;
// Independent parts of the weight below which the pixels are split too. A constant, so that no sum depends on the
// number of threads.
constexpr int64_t kTasks = 16;
// Sums of sums of sums: pixels that meet in one register, and boxes that meet in one sum before that goes into the
// total. Rounding errors then grow with the root of the longest of the three, as in the tile. A run's panel of 64
// columns takes 16 KiB, and stays in the first-level cache while all taps and rows meet it.
constexpr int64_t kRunPixels = 64;
constexpr int64_t kRunBoxes = 16;

template <class T, bool native>
struct WeightGradient {
  using Sum = typename Tile<T>::Sum;

  const ConvWeightGradientArgs& args;
  const ConvShape& shape;
  bool folded;  // gathered channels and taps, as in conv_fold.h
  Geometry g;
  Boxes boxes;
  // The side whose channels run along the vectors, and the side that is broadcast, a few channels a tile.
  bool vectors_dense;
  PanelLayout<T> columns;           // blocks of the vector side's channels (taps = length = 1)
  int64_t row_channels, row_block;  // broadcast channels in a group, and in a task
  int64_t row_blocks, items, splits, capacity;
  const T* zeros;
  Sum* partial;  // [split][item][item_size], where splits > 1

  struct Work {
    const T** gathered_rows;  // [tap][capacity]
    const T** dense_rows;     // [capacity]
    Sum* panel;               // [kRunPixels][block]
    Sum* sums;                // [tap][row_block][block], of a run of boxes
    Sum* total;               // the same, of all the task's boxes
    T* staged_dense;
    T* staged_gathered;
  };

  struct Item {
    int64_t group, block, column, columns, row, rows;
    int vectors;
  };

  int64_t item_size() const { return g.taps * row_block * columns.block; }
  int64_t gathered_block() const { return vectors_dense ? row_block : columns.block; }
  int64_t dense_block() const { return vectors_dense ? columns.block : row_block; }

  // The broadcast side is read a few channels at a time from every pixel, over and over. Rows of channels_last are a
  // power of two apart as a rule, and their lines would push each other out of the few sets of the cache that they
  // share: they are copied, an odd number of lines apart.
  bool stages_dense() const { return !args.dense_channels_last || !vectors_dense; }
  bool stages_gathered() const { return !args.gathered_channels_last || vectors_dense; }
  static int64_t staged_stride(int64_t channels) {
    constexpr int64_t line = 64 / sizeof(T);
    return (ceil_div(channels, line) | 1) * line;
  }

  Work take(Arena& arena) const {
    Work w{};
    w.gathered_rows = arena.take<const T*>(g.taps * capacity);
    w.dense_rows = arena.take<const T*>(capacity);
    w.panel = arena.take<Sum>(kRunPixels * columns.block);
    w.sums = arena.take<Sum>(item_size());
    if (splits == 1) w.total = arena.take<Sum>(item_size());
    if (stages_dense()) w.staged_dense = arena.take<T>(capacity * staged_stride(dense_block()));
    if (folded)
      w.staged_gathered = arena.take<T>(most_folded(g, boxes, shape));
    else if (stages_gathered())
      w.staged_gathered = arena.take<T>(most_input_pixels(g, boxes) * staged_stride(gathered_block()));
    return w;
  }

  Item item_at(int64_t index) const {
    Item item{};
    item.row = index % row_blocks * row_block;
    item.rows = smaller(row_block, row_channels - item.row);
    index /= row_blocks;
    item.block = index % columns.blocks();
    item.group = index / columns.blocks();
    item.vectors = columns.vectors(item.block);
    item.column = item.block * columns.block;
    item.columns = smaller(columns.columns - item.column, columns.block);
    return item;
  }

  // Tables of the rows of one box, pointing at the first of the item's channels.
  void make_tables(const Box& box, const Item& item, Work& w) const {
    const int64_t dense_group = shape.out_channels / shape.groups, gathered_group = shape.in_channels / shape.groups;
    const int64_t dense_first = item.group * dense_group + (vectors_dense ? item.column : item.row);
    const int64_t dense_count = vectors_dense ? item.columns : item.rows;
    const int64_t gathered_first = item.group * gathered_group + (vectors_dense ? item.row : item.column);
    const int64_t gathered_count = vectors_dense ? item.rows : item.columns;
    const int64_t pixels = box.pixels();

    const T* dense = static_cast<const T*>(args.dense);
    if (!stages_dense()) {
      const PixelStrides strides = channels_last_strides(shape.out_channels, shape.out_size);
      for_each_run(box, false, [&](int64_t i, const Pixel& pixel, int64_t count) {
        int64_t offset = pixel.batch * strides.batch + dense_first;
        for (int a = 0; a < 3; a++) offset += pixel.at[a] * strides.axis[a];
        for (int64_t j = 0; j < count; j++) w.dense_rows[i + j] = dense + offset + j * strides.axis[2];
      });
    } else {
      const int64_t stride = staged_stride(dense_count);
      stage(dense, args.dense_channels_last, shape.out_channels, shape.out_size, box, dense_first, dense_count,
            w.staged_dense, stride);
      for (int64_t p = 0; p < pixels; p++) w.dense_rows[p] = w.staged_dense + p * stride;
    }

    const T* gathered = static_cast<const T*>(args.gathered);
    PixelStrides strides;
    if (folded) {
      gathered = stage_folded(g, shape, gathered, args.gathered_channels_last, box, w.staged_gathered, strides);
    } else if (!stages_gathered()) {
      strides = channels_last_strides(shape.in_channels, shape.in_size);
      gathered += gathered_first;
    } else {
      const Box input = input_box(g, box);
      const int64_t stride = staged_stride(gathered_count);
      if (input.pixels() > 0)
        stage(gathered, args.gathered_channels_last, shape.in_channels, shape.in_size, input, gathered_first,
              gathered_count, w.staged_gathered, stride);
      strides = channels_last_strides(stride, input.count);
      gathered = whole_image(w.staged_gathered, input, strides);
    }
    list_rows(g, g.tap, g.taps, box, false, gathered, strides, zeros, w.gathered_rows, capacity);
  }

  static void stage(const T* image, bool channels_last, int64_t all_channels, const int64_t (&size)[3], const Box& box,
                    int64_t channel, int64_t channels, T* rows, int64_t stride) {
    if (channels_last)
      copy_rows(image, all_channels, size, box, channel, channels, rows, stride);
    else
      copy_box<true>(const_cast<T*>(image), all_channels, size, box, channel, channels, rows, stride);
  }

  void run_box(const Box& box, const Item& item, Work& w, Sum* sums) const {
    make_tables(box, item, w);
    const int64_t pixels = box.pixels(), width = item.vectors * Tile<T>::lanes;
    for (int64_t first = 0; first < pixels; first += kRunPixels) {
      const int64_t run = smaller(kRunPixels, pixels - first);
      if (vectors_dense) fill_panel<T, native>(w.dense_rows + first, run, item.vectors, item.columns, w.panel);
      for (int64_t t = 0; t < g.taps; t++) {
        const T* const* gathered = w.gathered_rows + t * capacity + first;
        if (!vectors_dense) fill_panel<T, native>(gathered, run, item.vectors, item.columns, w.panel);
        run_outer<T, native>(item.vectors, vectors_dense ? gathered : w.dense_rows + first, 0, run, w.panel, item.rows,
                             sums + t * item.rows * width);
      }
    }
  }

  // weight_gradient of one item from its sums [tap][row][column].
  void write(const Item& item, const Sum* sums) const {
    const int64_t dense_group = shape.out_channels / shape.groups, gathered_group = shape.in_channels / shape.groups;
    // Folded or not, the sums lie in the order [tap][gathered channel].
    const int64_t width = item.vectors * Tile<T>::lanes, taps = product(shape.kernel);
    const int64_t rows = folded ? gathered_group : item.rows;
    Sum* out = static_cast<Sum*>(args.weight_gradient) + item.group * dense_group * gathered_group * taps;
    if (vectors_dense && taps == 1) {
      transpose(sums, width, out + item.column * gathered_group + item.row, gathered_group, rows, item.columns);
      return;
    }
    for (int64_t i = 0; i < rows; i++) {
      const Sum* from = sums + i * width;
      if (vectors_dense)
        transpose(from, rows * width, out + (item.column * gathered_group + item.row + i) * taps, gathered_group * taps,
                  taps, item.columns);
      else
        transpose(from, rows * width, out + ((item.row + i) * gathered_group + item.column) * taps, taps, taps,
                  item.columns);
    }
  }

  void run_task(int64_t task, Work& w) const {
    const int64_t index = task / splits, split = task % splits;
    const Item item = item_at(index);
    Sum* total = splits == 1 ? w.total : partial + (split * items + index) * item_size();
    const int64_t begin = boxes.number * split / splits, end = boxes.number * (split + 1) / splits;
    for (int64_t first = begin; first < end; first += kRunBoxes) {
      Sum* sums = first == begin ? total : w.sums;
      std::memset(sums, 0, item_size() * sizeof(Sum));
      for (int64_t b = first; b < smaller(end, first + kRunBoxes); b++)
        run_box(box_at(boxes, shape.batch, shape.out_size, b), item, w, sums);
      if (first == begin) continue;
      for (int64_t i = 0; i < item_size(); i++) total[i] += sums[i];
    }
    if (splits == 1) write(item, total);
  }

  void run() {
    folded = folds<T>(shape, false);
    const ConvShape seen = folded ? folded_shape(shape) : shape;
    const int64_t dense_group = shape.out_channels / shape.groups, gathered_group = seen.in_channels / shape.groups;
    const int64_t taps = product(seen.kernel), lanes = Tile<T>::lanes;
    // Vectors along the dense side make one panel serve all taps; but they want channels to fill them, and with one
    // tap the other way writes whole rows.
    vectors_dense =
        folded || (taps == 1 ? gathered_group < lanes : dense_group >= lanes || dense_group >= gathered_group);
    columns = {shape.groups, vectors_dense ? dense_group : gathered_group, 1, 1};
    row_channels = vectors_dense ? gathered_group : dense_group;
    const int64_t tile = tile_rows(columns.vectors(0));
    const int64_t room = larger(1, kSumBytes / (taps * columns.block * static_cast<int64_t>(sizeof(Sum)) * tile));
    row_block = ceil_div(ceil_div(row_channels, ceil_div(row_channels, room * tile)), tile) * tile;
    row_block = folded ? row_channels : smaller(row_block, row_channels);
    row_blocks = ceil_div(row_channels, row_block);
    items = shape.groups * columns.blocks() * row_blocks;
    boxes = cut_into_boxes(shape.batch, shape.out_size, larger(32, smaller(kBoxPixels, kTablePointers / taps)), false,
                           false);
    capacity = boxes.step[0] * boxes.step[1] * boxes.step[2] * boxes.step[3];
    splits = larger(1, smaller(boxes.number, ceil_div(kTasks, items)));

    Arena shared;
    for (int round = 0; round < 2; round++) {
      g = make_geometry(seen, false, shared);
      zeros = shared.take<T>(seen.in_channels);
      partial = splits > 1 ? shared.take<Sum>(splits * items * item_size()) : nullptr;
      if (round == 0) shared = {static_cast<char*>(scratch(Scratch::shared, shared.used)), 0};
    }
    fill_geometry(g, false);
    std::memset(const_cast<T*>(zeros), 0, seen.in_channels * sizeof(T));

    const int64_t tasks = items * splits;
    for_each_task(
        tasks, [&](Arena& arena) { return take(arena); }, [](Work&) {},
        [&](int64_t task, Work& w) { run_task(task, w); });
    if (splits == 1) return;
    parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; index++) {
        Sum* sums = partial + index * item_size();
        for (int64_t split = 1; split < splits; split++) {
          const Sum* more = partial + (split * items + index) * item_size();
          for (int64_t i = 0; i < item_size(); i++) sums[i] += more[i];
        }
        write(item_at(index), sums);
      }
    });
  }
};

template <class T, bool native = false>
void weight_gradient(const ConvWeightGradientArgs& args) {
  WeightGradient<T, native> gradient{args, args.shape, false, {}, {}, {}, {}, 0, 0, 0, 0, 0, 0, nullptr, nullptr};
  gradient.run();
}

}  // namespace

void conv_weight_gradient(const ConvWeightGradientArgs& args) {
  switch (args.dtype) {
    case Dtype::float64:
      return weight_gradient<double>(args);
    case Dtype::bfloat16:
#if defined(__AVX512F__)
      if (__builtin_cpu_supports("avx512bf16")) return weight_gradient<bfloat16, true>(args);
#endif
      return weight_gradient<bfloat16>(args);
    default:
      return weight_gradient<float>(args);
  }
}

}  // namespace gencore::GENCORE_ISA
