#include "cpu/conv_fold.h"
#include "cpu/conv_scatter.h"

namespace gencore::GENCORE_ISA {

namespace {

// Panels of this many bytes are walked once for every tile of a box, so they should stay in the second-level cache.
constexpr int64_t kPanelBytes = 512 * 1024;
// Pixels of a box: the more, the less often the panels come from beyond that cache. The rows of their inputs should
// stay there too, and a small grid should make enough boxes.
constexpr int64_t kBoxPixels = 192, kMostBoxPixels = 384;
constexpr int64_t kRowBytes = 384 * 1024;
constexpr int64_t kEnoughBoxes = 32;
// Boxes times channel ranges; more tasks than threads, so that a slower thread is waited for less.
constexpr int64_t kTasks = 64;
// Grids up to this many pixels are worked on image by image within one place, so that whole tiles meet the padding.
constexpr int64_t kSmallGrid = 64;

template <class T>
struct Forward {
  using Sum = typename Tile<T>::Sum;

  const ConvForwardArgs& args;
  const ConvShape& shape;
  bool folded;  // input channels and taps, as in conv_fold.h
  Geometry g;
  PanelLayout<T> layout;
  Boxes boxes;
  int64_t capacity, items, splits;  // pixels of a box; (group, block) pairs; how many ways the items are split
  const T* zeros;
  BoxMoments box_moments;

  struct Work {         // one thread's arrays
    const T** rows;     // [tap][capacity]
    T** out;            // [phase][capacity]
    const Sum** scale;  // [phase][capacity]
    int64_t* counts;    // [phase]
    Segment<T>* segments;
    Sum* partial;
    Sum* bias;
    Sum* slopes;
    Moments<T>* moments;
    T* staged_x;
    T* staged_y;
  };

  int64_t length_cuts() const {
    return ceil_div(layout.length * kMaxVectors * Tile<T>::lanes * static_cast<int64_t>(sizeof(T)), kPanelBytes) + 1;
  }

  Work take(Arena& arena) const {
    Work w{};
    w.rows = arena.take<const T*>(g.taps * capacity);
    w.out = arena.take<T*>(g.phases * capacity);
    if (args.scale) w.scale = arena.take<const Sum*>(g.phases * capacity);
    w.counts = arena.take<int64_t>(g.phases);
    w.segments = arena.take<Segment<T>>(g.taps * length_cuts());
    w.partial = arena.take<Sum>(capacity * layout.block);
    w.bias = arena.take<Sum>(layout.block);
    w.slopes = arena.take<Sum>(layout.block);
    if (args.mean) w.moments = arena.take<Moments<T>>(1);
    if (folded)
      w.staged_x = arena.take<T>(most_folded(g, boxes, shape));
    else if (!args.x_channels_last)
      w.staged_x = arena.take<T>(most_input_pixels(g, boxes) * shape.in_channels);
    if (!args.y_channels_last) w.staged_y = arena.take<T>(capacity * g.phases * layout.block);
    return w;
  }

  // Where rows of the box's input are: in place, or copied to pixel rows.
  const T* input_rows(const Box& box, Work& w, PixelStrides& strides) const {
    if (folded)
      return stage_folded(g, shape, static_cast<const T*>(args.x), args.x_channels_last, box, w.staged_x, strides);
    if (!args.x_channels_last) return stage_input(g, args.x, box, w.staged_x, strides);
    strides = channels_last_strides(shape.in_channels, shape.in_size);
    return static_cast<const T*>(args.x);
  }

  void make_tables(const Box& box, Work& w) const {
    PixelStrides x_strides, y_strides;
    const T* x = input_rows(box, w, x_strides);
    const Box out_box = output_box(g, box);
    T* y = static_cast<T*>(args.y);
    if (args.y_channels_last) {
      y_strides = channels_last_strides(shape.out_channels, shape.out_size);
    } else {
      y_strides = channels_last_strides(layout.block, out_box.count);
      y = whole_image(w.staged_y, out_box, y_strides);
    }
    const int64_t step = boxes.batch_inside ? y_strides.batch : g.output_step[2] * y_strides.axis[2];
    const int64_t scale_of_sample = args.scale_per_sample ? shape.out_channels : 0;
    for (int64_t p = 0; p < g.phases; p++) {
      const Phase& phase = g.phase[p];
      const Box own = phase_box(g, phase, box);
      w.counts[p] = own.pixels();
      for_each_run(own, boxes.batch_inside, [&](int64_t i, const Pixel& pixel, int64_t count) {
        int64_t offset = pixel.batch * y_strides.batch;
        for (int a = 0; a < 3; a++) offset += (phase.first[a] + pixel.at[a] * g.output_step[a]) * y_strides.axis[a];
        for (int64_t j = 0; j < count; j++) w.out[p * capacity + i + j] = y + (offset + j * step);
        if (!w.scale) return;
        const Sum* scale = static_cast<const Sum*>(args.scale) + pixel.batch * scale_of_sample;
        const int64_t more = boxes.batch_inside ? scale_of_sample : 0;
        for (int64_t j = 0; j < count; j++) w.scale[p * capacity + i + j] = scale + j * more;
      });
      list_rows(g, g.tap + phase.tap_begin, phase.tap_count, own, boxes.batch_inside, x, x_strides, zeros,
                w.rows + phase.tap_begin * capacity, capacity);
    }
  }

  // One phase of a box for one block of channels.
  template <bool native>
  void run_phase(const Phase& phase, int64_t pixels, int64_t group, int64_t b, Work& w, Epilogue<T>& e) const {
    const T* panels = static_cast<const T*>(args.packed) + layout.offset(group, b);
    if constexpr (sizeof(T) == 4) {
      if (layout.few()) {
        for (int64_t tap = 0; tap < phase.tap_count; tap++) {
          const int64_t slot = phase.tap_begin + tap;
          w.segments[tap] = {w.rows + slot * capacity, panels + g.tap[slot].index * layout.tap_size(b), zeros,
                             group * layout.length, layout.length};
        }
        return run_few(w.segments, phase.tap_count, pixels, e.channels, e);
      }
    }
    const int vectors = layout.vectors(b);
    const int64_t width = vectors * Tile<T>::lanes;
    // A pass may take this much of the reduction; even, because bfloat16 goes in pairs.
    const int64_t pass_length = larger(2, kPanelBytes / (width * static_cast<int64_t>(sizeof(T))) / 2 * 2);
    const bool late = is_transcendental(args.activation);
    int64_t tap = 0, k = 0;
    e.resume = false;
    do {
      int64_t count = 0, room = pass_length;
      while (tap < phase.tap_count && room > 0) {
        const int64_t length = smaller(room, layout.length - k);
        const int64_t slot = phase.tap_begin + tap;
        w.segments[count++] = {w.rows + slot * capacity, panels + g.tap[slot].index * layout.tap_size(b) + k * width,
                               zeros, group * layout.length + k, length};
        room -= length;
        k += length;
        if (k == layout.length) tap++, k = 0;
      }
      e.finish = tap == phase.tap_count && !late;
      run_block<T, native>(w.segments, count, pixels, vectors, e);
      e.resume = true;
    } while (tap < phase.tap_count);
    if (late) finish_rows(e, pixels, vectors);
  }

  template <bool native>
  void run_item(int64_t item, int64_t box_index, const Box& box, Work& w) const {
    const int64_t group = item / layout.blocks(), b = item % layout.blocks();
    const int64_t first = b * layout.block;
    Epilogue<T> e{};
    e.channels = static_cast<int>(smaller(layout.columns - first, layout.block));
    const int64_t channel = group * layout.columns + first;
    e.channel = args.y_channels_last ? channel : 0;
    e.scale_channel = channel;
    e.bias = padded<T>(args.bias, channel, e.channels, w.bias);
    e.slopes = padded<T>(args.slopes, channel, e.channels, w.slopes);
    e.activation = args.activation;
    e.negative_slope = static_cast<Sum>(args.negative_slope);
    e.partial = w.partial;
    e.has_residual = args.residual != nullptr;
    e.moments = w.moments;
    const Box out_box = output_box(g, box);
    if (args.y_channels_last)
      e.residual = static_cast<const char*>(args.residual) - static_cast<char*>(args.y);
    else if (e.has_residual)
      copy_box<true>(static_cast<T*>(const_cast<void*>(args.residual)), shape.out_channels, shape.out_size, out_box,
                     channel, e.channels, w.staged_y, layout.block);
    int64_t gathered = 0;
    for (int64_t p = 0; p < g.phases; p++) {
      e.out = w.out + p * capacity;
      if (args.scale) e.scale = w.scale + p * capacity;
      if (w.counts[p] == 0) continue;
      if (e.moments) e.moments->count = 0;
      run_phase<native>(g.phase[p], w.counts[p], group, b, w, e);
      if (e.moments) box_moments.add(box_index, channel, e.channels, gathered, *e.moments);
      gathered += w.counts[p];
    }
    if (!args.y_channels_last)
      copy_box<false>(static_cast<T*>(args.y), shape.out_channels, shape.out_size, out_box, channel, e.channels,
                      w.staged_y, layout.block);
  }

  void cut() {
    layout = {shape.groups, shape.out_channels / shape.groups, g.shape.in_channels / shape.groups, g.taps};
    const bool staged = folded || !args.x_channels_last || !args.y_channels_last;
    const bool batch_inside = product(g.grid) <= kSmallGrid && g.taps > 1;
    const int64_t fitting = kRowBytes / (shape.in_channels * static_cast<int64_t>(sizeof(T)));
    const int64_t sharing = shape.batch * product(g.grid) / kEnoughBoxes;
    const int64_t pixels = larger(kBoxPixels, smaller(kMostBoxPixels, smaller(fitting, sharing)));
    boxes = cut_into_boxes(shape.batch, g.grid, pixels, batch_inside, batch_inside && !staged);
    capacity = boxes.step[0] * boxes.step[1] * boxes.step[2] * boxes.step[3];
    items = layout.groups * layout.blocks();
    splits = larger(1, smaller(items, ceil_div(kTasks, boxes.number)));
  }

  template <bool native>
  void run() {
    folded = folds<T>(shape, args.transposed);
    Arena shared;
    for (int round = 0; round < 2; round++) {
      g = make_geometry(folded ? folded_shape(shape) : shape, args.transposed, shared);
      cut();
      zeros = shared.take<T>(g.shape.in_channels);
      if (args.mean)
        box_moments = {shared.take<double>(BoxMoments::size(boxes.number, shape.out_channels)), shape.out_channels};
      if (round == 0) shared = {static_cast<char*>(scratch(Scratch::shared, shared.used)), 0};
    }
    fill_geometry(g, args.transposed);
    std::memset(const_cast<T*>(zeros), 0, g.shape.in_channels * sizeof(T));
    const int64_t tasks = boxes.number * splits;
    for_each_task(
        tasks, [&](Arena& arena) { return take(arena); }, [](Work&) {},
        [&](int64_t task, Work& w) {
          const Box box = box_at(boxes, shape.batch, g.grid, task / splits);
          const int64_t split = task % splits;
          make_tables(box, w);
          for (int64_t item = items * split / splits; item < items * (split + 1) / splits; item++)
            run_item<native>(item, task / splits, box, w);
        });
    if (args.mean)
      box_moments.finish(
          boxes.number, [&](int64_t b) { return output_box(g, box_at(boxes, shape.batch, g.grid, b)).pixels(); },
          static_cast<Sum*>(args.mean), static_cast<Sum*>(args.var));
  }
};

template <class T, bool native = false>
void forward(const ConvForwardArgs& args) {
  Forward<T> forward{args, args.shape, false, {}, {}, {}, 0, 0, 0, nullptr, {}};
  forward.template run<native>();
}

}  // namespace

void conv_forward(const ConvForwardArgs& args) {
  switch (args.dtype) {
    case Dtype::float64:
      return forward<double>(args);
    case Dtype::bfloat16:
#if defined(__AVX512F__)
      if (__builtin_cpu_supports("avx512bf16")) return forward<bfloat16, true>(args);
#endif
      return forward<bfloat16>(args);
    default:
      if (ScatterForward scatter{args}; scatter.pays()) return scatter.run();
      return forward<float>(args);
  }
}

}  // namespace gencore::GENCORE_ISA
