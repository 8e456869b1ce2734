// The weight gradient by minimal filtering. The gradient of U, of pair (p, q) and channels c and o, is the sum over
// tiles of V[value][tile][c] W[sum][tile][o], where W = A (gradient of y) A' is the transpose of the output's
// transform; the filter's gradient is G' (gradient of U) G.
//
// Tiles come in parts: all threads transform those of a part, then share out the sums, each of which is made by one
// thread in one order. So the bits depend on the shape alone, and nothing is summed twice.
#include "cpu/conv_winograd.h"

namespace gencore::GENCORE_ISA {

namespace {

// V and W of a part, all threads together; tiles of one box, which a thread transforms at a time.
constexpr int64_t kPartBytes = 16 << 20, kFewestTiles = 96, kMostTiles = 512, kBoxTiles = 64;
// Products that meet in one sum; these sums meet in one of the part, and those in the total.
constexpr int64_t kRunTiles = 16;
constexpr int kVectors = kMaxVectors, kBlock = kVectors * kLanes;

// Sums of MR rows (channels of V) by one block of columns: total += V' W over `tiles` tiles.
template <int MR>
GENCORE_INLINE void outer_products(const float* v, const float* w, int64_t tiles, bool add, float* total) {
  vfloat part[MR][kVectors] = {};  // in memory: the registers are taken
  for (int64_t first = 0; first < tiles; first += kRunTiles) {
    const int64_t end = smaller(tiles, first + kRunTiles);
    vfloat sum[MR][kVectors] = {};
    for (int64_t t = first; t < end; t++) {
      vfloat b[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; j++) b[j] = load(w + t * kBlock + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < MR; i++) {
        const vfloat value = splat<vfloat>(v[t * kLanes + i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; j++) sum[i][j] = multiply_add(value, b[j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; j++) part[i][j] += sum[i][j];
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < kVectors; j++) {
      float* to = total + i * kBlock + j * kLanes;
      store(to, add ? load(to) + part[i][j] : part[i][j]);
    }
}

// The same for a whole vector of channels.
GENCORE_INLINE void all_products(const float* v, const float* w, int64_t tiles, bool add, float* total) {
  if constexpr (kLanes == 16) {
    outer_products<6>(v, w, tiles, add, total);
    outer_products<5>(v + 6, w, tiles, add, total + 6 * kBlock);
    outer_products<5>(v + 11, w, tiles, add, total + 11 * kBlock);
  } else {
    for (int i = 0; i < kLanes; i += 4) outer_products<4>(v + i, w, tiles, add, total + i * kBlock);
  }
}

template <class S>
struct WinogradWeightGradient {
  static constexpr int kInputs = S::kInputs * S::kInputs, kOutputs = S::kOutputs * S::kOutputs,
                       kValues = S::kValues * S::kValues, kSums = S::kSums * S::kSums, kPairs = S::kPairs * S::kPairs,
                       kTaps = S::kTaps * S::kTaps;

  const ConvWeightGradientArgs& args;
  const ConvShape& shape;
  Geometry gathered, dense;  // of the tiles: their inputs, and their outputs
  Boxes boxes;
  int64_t capacity, part;  // tiles of a box and of a part, at most
  int64_t groups, blocks;  // vectors of gathered channels, blocks of dense ones
  const float* zeros;
  float* v;      // [value][group][tile][lane]
  float* w;      // [sum][block][tile][column]
  float* total;  // [pair][block][group][lane][column]

  struct Work {  // one thread's arrays
    Pixel* tiles;
    const float** rows;  // [input or output][capacity]
    float *staged_gathered, *staged_dense;
  };

  Work take(Arena& arena) const {
    Work w{};
    w.tiles = arena.take<Pixel>(capacity);
    w.rows = arena.take<const float*>((kInputs > kOutputs ? kInputs : kOutputs) * capacity);
    if (!args.gathered_channels_last)
      w.staged_gathered = arena.take<float>(most_input_pixels(gathered, boxes) * shape.in_channels);
    if (!args.dense_channels_last)
      w.staged_dense = arena.take<float>(most_input_pixels(dense, boxes) * shape.out_channels);
    return w;
  }

  // The outputs of the tiles, as inputs of a geometry.
  Geometry output_geometry(Arena& arena) const {
    ConvShape outputs = shape;
    outputs.in_channels = shape.out_channels;
    for (int a = 1; a < 3; a++) {
      outputs.in_size[a] = shape.out_size[a];
      outputs.kernel[a] = outputs.stride[a] = S::kOutputs;
      outputs.padding[a] = 0;
      outputs.out_size[a] = ceil_div(shape.out_size[a], S::kOutputs);
    }
    return make_geometry(outputs, false, arena);
  }

  void lay_out(Arena& arena) {
    gathered = tile_geometry<S>(shape, false, arena);
    dense = output_geometry(arena);
    const int64_t all = shape.batch * product(gathered.grid);
    boxes = cut_into_boxes(shape.batch, gathered.grid, kBoxTiles, false, false);
    capacity = boxes.step[0] * boxes.step[2] * boxes.step[3];
    groups = ceil_div(shape.in_channels, kLanes);
    blocks = ceil_div(shape.out_channels, kBlock);
    const int64_t bytes = (kValues * groups * kLanes + kSums * blocks * kBlock) * static_cast<int64_t>(sizeof(float));
    part = smaller(all, larger(capacity, larger(kFewestTiles, smaller(kMostTiles, kPartBytes / bytes))));
    zeros = arena.take<float>(larger(shape.in_channels, shape.out_channels));
    v = arena.take<float>(kValues * groups * kLanes * part);
    w = arena.take<float>(kSums * blocks * kBlock * part);
    total = arena.take<float>(kPairs * blocks * groups * kLanes * kBlock);
  }

  // V and W of one box, whose tiles begin at `first` of `tiles` of the part.
  void transform(const Box& box, int64_t first, int64_t tiles, Work& work) const {
    list_pixels(box, false, work.tiles);
    const int64_t count = box.pixels();
    PixelStrides strides = channels_last_strides(shape.in_channels, shape.in_size);
    const float* x = args.gathered_channels_last
                         ? static_cast<const float*>(args.gathered)
                         : stage_input(gathered, args.gathered, box, work.staged_gathered, strides);
    list_rows(gathered, gathered.tap, kInputs, work.tiles, count, x, strides, zeros, work.rows, capacity);
    for (int64_t t = 0; t < count; t++)
      transform_input<S>(work.rows + t, capacity, shape.in_channels, v + (first + t) * kLanes, groups * tiles * kLanes,
                         tiles * kLanes);

    strides = channels_last_strides(shape.out_channels, shape.out_size);
    const float* y = args.dense_channels_last ? static_cast<const float*>(args.dense)
                                              : stage_input(dense, args.dense, box, work.staged_dense, strides);
    list_rows(dense, dense.tap, kOutputs, work.tiles, count, y, strides, zeros, work.rows, capacity);
    for (int64_t t = 0; t < count; t++) transform_gradient(work.rows + t, w + (first + t) * kBlock, tiles);
  }

  GENCORE_INLINE void transform_gradient(const float* const* rows, float* to, int64_t tiles) const {
    for (int64_t c = 0; c < blocks * kBlock; c += kLanes) {
      const int n = static_cast<int>(smaller(kLanes, larger(0, shape.out_channels - c)));
      vfloat half[S::kSums][S::kOutputs];
      for (int j = 0; j < S::kOutputs; j++) {
        vfloat y[S::kOutputs], sums[S::kSums];
        for (int i = 0; i < S::kOutputs; i++)
          y[i] = n > 0 ? load_lanes(rows[(i * S::kOutputs + j) * capacity] + c, n) : vfloat{};
        S::sums_gradient(y, sums);
        for (int i = 0; i < S::kSums; i++) half[i][j] = sums[i];
      }
      for (int i = 0; i < S::kSums; i++) {
        vfloat sums[S::kSums];
        S::sums_gradient(half[i], sums);
        for (int j = 0; j < S::kSums; j++)
          store(to + ((i * S::kSums + j) * blocks + c / kBlock) * tiles * kBlock + c % kBlock, sums[j]);
      }
    }
  }

  void add_products(int64_t tiles, bool add) const {
    parallel_for(0, kPairs * blocks * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        const int64_t group = task % groups, block = task / groups % blocks, pair = task / groups / blocks;
        const int64_t i = pair / S::kPairs, j = pair % S::kPairs;
        const int64_t value = S::kValue[i] * S::kValues + S::kValue[j], sum = S::kSum[i] * S::kSums + S::kSum[j];
        all_products(v + (value * groups + group) * tiles * kLanes, w + (sum * blocks + block) * tiles * kBlock, tiles,
                     add, total + task * kLanes * kBlock);
      }
    });
  }

  // G' U G for every vector of gathered channels and block of dense ones, into [dense][gathered][tap].
  void finish() const {
    parallel_for(0, blocks * groups, 1, [&](int64_t begin, int64_t end) {
      float* local = static_cast<float*>(scratch(Scratch::worker, kTaps * kLanes * kBlock * sizeof(float)));
      for (int64_t task = begin; task < end; task++) {
        const int64_t group = task % groups, block = task / groups;
        for (int64_t c = 0; c < kLanes; c++)
          for (int64_t n = 0; n < kBlock; n += kLanes) {
            vfloat half[S::kTaps][S::kPairs];
            for (int j = 0; j < S::kPairs; j++) {
              vfloat u[S::kPairs], taps[S::kTaps];
              for (int i = 0; i < S::kPairs; i++)
                u[i] = load(total + (((i * S::kPairs + j) * blocks + block) * groups + group) * kLanes * kBlock +
                            c * kBlock + n);
              S::filter_gradient(u, taps);
              for (int i = 0; i < S::kTaps; i++) half[i][j] = taps[i];
            }
            for (int i = 0; i < S::kTaps; i++) {
              vfloat taps[S::kTaps];
              S::filter_gradient(half[i], taps);
              for (int j = 0; j < S::kTaps; j++) store(local + (c * kTaps + i * S::kTaps + j) * kBlock + n, taps[j]);
            }
          }
        const int64_t channel = group * kLanes, row = shape.in_channels * kTaps;
        transpose(local, kBlock, static_cast<float*>(args.weight_gradient) + block * kBlock * row + channel * kTaps,
                  row, smaller(kLanes, shape.in_channels - channel) * kTaps,
                  smaller(kBlock, shape.out_channels - block * kBlock));
      }
    });
  }

  void run() {
    Arena shared;
    for (int round = 0; round < 2; round++) {
      lay_out(shared);
      if (round == 0) shared = {static_cast<char*>(scratch(Scratch::shared, shared.used)), 0};
    }
    fill_geometry(gathered, false);
    fill_geometry(dense, false);
    std::memset(const_cast<float*>(zeros), 0, larger(shape.in_channels, shape.out_channels) * sizeof(float));
    for (int64_t box = 0; box < boxes.number;) {
      const int64_t first = box;
      int64_t tiles = 0;
      for (; box < boxes.number; box++) {
        const int64_t count = box_at(boxes, shape.batch, gathered.grid, box).pixels();
        if (tiles + count > part) break;
        tiles += count;
      }
      parallel_for(first, box, 1, [&](int64_t begin, int64_t end) {
        Arena arena;
        take(arena);
        arena = {static_cast<char*>(scratch(Scratch::worker, arena.used)), 0};
        Work work = take(arena);
        int64_t at = 0;
        for (int64_t b = first; b < end; b++) {
          const Box own = box_at(boxes, shape.batch, gathered.grid, b);
          if (b >= begin) transform(own, at, tiles, work);
          at += own.pixels();
        }
      });
      add_products(tiles, first > 0);
    }
    finish();
  }
};

template <class S>
void weight_gradient(const ConvWeightGradientArgs& args) {
  WinogradWeightGradient<S> gradient{args, args.shape, {}, {}, {}, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr};
  gradient.run();
}

}  // namespace

void conv_winograd_weight_gradient(const ConvWeightGradientArgs& args) {
  if (args.shape.kernel[1] == 4)
    weight_gradient<Strided4>(args);
  else if (args.shape.stride[1] == 2)
    weight_gradient<Strided3>(args);
  else
    weight_gradient<Filter3>(args);
}

}  // namespace gencore::GENCORE_ISA
