// The weight gradient by minimal filtering. The gradient of U, of pair (p, q) and channels c and o, is the sum over
// tiles of V[value][tile][c] W[sum][tile][o], where W = A (gradient of y) A' is the transpose of the output's
// transform; the filter's gradient is G' (gradient of U) G.
//
// In three dimensions a tap along the depth pairs V of one plane with W of another; what it pairs is two runs of tiles.
//
// Tiles come in parts: all threads transform those of a part, then share out the sums, each of which is made by one
// thread in one order. So the bits depend on the shape alone, and nothing is summed twice.
#include "cpu/conv_outer.h"
#include "cpu/conv_winograd.h"

namespace gencore::GENCORE_ISA {

namespace {

// V and W of a part, all threads together; tiles of one piece, which a thread transforms at a time.
constexpr int64_t kPartBytes = 16 << 20, kFewestTiles = 96, kMostTiles = 512, kPieceTiles = 64;
// Products that meet in one sum; these sums meet in one of the part, and those in the total.
constexpr int64_t kRunTiles = 32;
constexpr int kVectors = kMaxVectors, kBlock = kVectors * kLanes;

// sums (+)= V' W over `tiles` tiles, for MR rows (channels of V) by one block of columns.
template <int MR>
GENCORE_INLINE void tile_products(const float* v, const float* w, int64_t tiles, bool add, float* sums) {
  vfloat sum[MR][kVectors] = {};
  for (int64_t t = 0; t < tiles; t++) add_outer(v + t * kLanes, w + t * kBlock, sum);
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) {
      float* to = sums + i * kBlock + j * kLanes;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
}

// total (+)= the same for a whole vector of channels. A run of tiles meets all of them while it is in the first cache.
inline void all_products(const float* v, const float* w, int64_t tiles, bool add, float* total) {
  alignas(64) float part[kLanes * kBlock];
  int64_t first = 0;
  do {
    const int64_t run = smaller(kRunTiles, tiles - first);
    if constexpr (kLanes == 16) {
      tile_products<6>(v, w, run, first > 0, part);
      tile_products<5>(v + 6, w, run, first > 0, part + 6 * kBlock);
      tile_products<5>(v + 11, w, run, first > 0, part + 11 * kBlock);
    } else {
      for (int i = 0; i < kLanes; i += 4) tile_products<4>(v + i, w, run, first > 0, part + i * kBlock);
    }
    v += run * kLanes;
    w += run * kBlock;
    first += kRunTiles;
  } while (first < tiles);
  for (int64_t i = 0; i < kLanes * kBlock; i += kLanes)
    store(total + i, add ? load(total + i) + load(part + i) : load(part + i));
}

template <class S>
struct WinogradWeightGradient {
  static constexpr int kInputs = S::kInputs * S::kInputs, kOutputs = S::kOutputs * S::kOutputs,
                       kValues = S::kValues * S::kValues, kSums = S::kSums * S::kSums, kPairs = S::kPairs * S::kPairs,
                       kTaps = S::kTaps * S::kTaps;

  const ConvWeightGradientArgs& args;
  const ConvShape& shape;
  Geometry gathered, dense, depth;  // of the tiles, their inputs and their outputs; and along the depth
  Boxes parts;
  int64_t piece_rows, capacity;  // rows of tiles of a piece, and tiles
  int64_t groups, blocks;        // vectors of gathered channels, blocks of dense ones
  const float* zeros;
  float* v;      // [value][group][slot of the plane][tile of the plane][lane]
  float* w;      // [sum][block][plane][tile of the plane][column]
  float* total;  // [tap along the depth][pair][block][group][lane][column]

  struct Work {          // one thread's arrays
    const float** rows;  // [input or output][capacity]
    float *staged_gathered, *staged_dense;
  };

  Work take(Arena& arena) const {
    Work w{};
    w.rows = arena.take<const float*>((kInputs > kOutputs ? kInputs : kOutputs) * capacity);
    const Boxes piece{{1, 1, piece_rows, parts.step[3]}, {}, 0, false};
    if (!args.gathered_channels_last)
      w.staged_gathered = arena.take<float>(most_input_pixels(gathered, piece) * shape.in_channels);
    if (!args.dense_channels_last)
      w.staged_dense = arena.take<float>(most_input_pixels(dense, piece) * shape.out_channels);
    return w;
  }

  // The outputs of the tiles, as inputs of a geometry.
  Geometry output_geometry(Arena& arena) const {
    ConvShape outputs = shape;
    outputs.in_channels = shape.out_channels;
    for (int a = 0; a < 3; a++) {
      outputs.in_size[a] = shape.out_size[a];
      outputs.kernel[a] = outputs.stride[a] = a ? S::kOutputs : 1;
      outputs.padding[a] = 0;
      outputs.out_size[a] = ceil_div(shape.out_size[a], outputs.stride[a]);
    }
    return make_geometry(outputs, false, arena);
  }

  void lay_out(Arena& arena) {
    gathered = tile_geometry<S, S>(shape, false, arena);
    dense = output_geometry(arena);
    depth = depth_geometry(shape, false, arena);
    groups = ceil_div(shape.in_channels, kLanes);
    blocks = ceil_div(shape.out_channels, kBlock);
    const int64_t numbers = kValues * groups * kLanes * shape.stride[0] + kSums * blocks * kBlock;
    const int64_t fitting = kPartBytes / (numbers * static_cast<int64_t>(sizeof(float)));
    parts =
        cut_into_boxes(shape.batch, gathered.grid, larger(kFewestTiles, smaller(kMostTiles, fitting)), false, false);
    piece_rows = larger(1, smaller(parts.step[2], kPieceTiles / parts.step[3]));
    capacity = piece_rows * parts.step[3];
    const int64_t of_plane = parts.step[0] * parts.step[2] * parts.step[3];
    zeros = arena.take<float>(larger(shape.in_channels, shape.out_channels));
    v = arena.take<float>(kValues * groups * kLanes * of_plane * Planes::most_slots(shape, false, parts.step[1]));
    w = arena.take<float>(kSums * blocks * kBlock * of_plane * parts.step[1]);
    total = arena.take<float>(shape.kernel[0] * kPairs * blocks * groups * kLanes * kBlock);
  }

  // The tiles of one part: those of plane p begin at p * of_plane(), or for V at its slot times that.
  struct Part {
    Box box;
    Planes planes;
    Part(const Geometry& depth, const Box& b) : box(b), planes(depth, b.origin[0], b.count[0]) {}
    int64_t of_plane() const { return plane_of(box, 0).pixels(); }
    int64_t gathered_tiles() const { return planes.slots() * of_plane(); }
  };

  // V and W of a part: its planes image by image, a few rows of tiles at a time, by turns, so that all threads have as
  // much of both.
  void transform(const Part& part) const {
    const Box& box = part.box;
    const int64_t cuts = ceil_div(box.count[1], piece_rows), pieces = box.batch_count * cuts;
    const int64_t planes = larger(part.planes.number, box.count[0]);
    parallel_for(0, 2 * planes * pieces, 1, [&](int64_t begin, int64_t end) {
      Arena arena;
      take(arena);
      arena = {static_cast<char*>(scratch(Scratch::worker, arena.used)), 0};
      Work work = take(arena);
      for (int64_t task = begin; task < end; task++) {
        const int64_t n = task / 2 % pieces / cuts, row = task / 2 % cuts * piece_rows, p = task / 2 / pieces;
        const bool inputs = task % 2 == 0;
        if (p >= (inputs ? part.planes.number : box.count[0])) continue;
        Box piece = plane_of(box, (inputs ? part.planes.first : box.origin[0]) + p);
        piece.batch += n;
        piece.batch_count = 1;
        piece.origin[1] += row;
        piece.count[1] = smaller(piece_rows, box.count[1] - row);
        const int64_t first = (n * box.count[1] + row) * box.count[2];
        if (!inputs)
          transform_outputs(piece, p * part.of_plane() + first, box.pixels(), work);
        else if (piece.origin[0] >= 0 && piece.origin[0] < shape.in_size[0])
          transform_inputs(piece, part.planes.slot(p) * part.of_plane() + first, part.gathered_tiles(), work);
      }
    });
  }

  // V of one piece, whose tiles begin at `first` of `tiles`.
  void transform_inputs(const Box& piece, int64_t first, int64_t tiles, Work& work) const {
    const int64_t count = piece.pixels();
    PixelStrides strides = channels_last_strides(shape.in_channels, shape.in_size);
    const float* x = args.gathered_channels_last
                         ? static_cast<const float*>(args.gathered)
                         : stage_input(gathered, args.gathered, piece, work.staged_gathered, strides);
    list_rows(gathered, gathered.tap, kInputs, piece, false, x, strides, zeros, work.rows, capacity);
    for (int64_t t = 0; t < count; t++)
      transform_input<S, S>(work.rows + t, capacity, shape.in_channels, nullptr, v + (first + t) * kLanes,
                            groups * tiles * kLanes, tiles * kLanes);
  }

  // The same for W.
  void transform_outputs(const Box& piece, int64_t first, int64_t tiles, Work& work) const {
    const int64_t count = piece.pixels();
    PixelStrides strides = channels_last_strides(shape.out_channels, shape.out_size);
    const float* y = args.dense_channels_last ? static_cast<const float*>(args.dense)
                                              : stage_input(dense, args.dense, piece, work.staged_dense, strides);
    list_rows(dense, dense.tap, kOutputs, piece, false, y, strides, zeros, work.rows, capacity);
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

  void add_products(const Part& part, bool add) const {
    const int64_t inputs = part.gathered_tiles(), outputs = part.box.pixels(), of_plane = part.of_plane();
    parallel_for(0, depth.taps * kPairs * blocks * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        const int64_t group = task % groups, block = task / groups % blocks, pair = task / groups / blocks % kPairs;
        const Tap& tap = depth.tap[task / groups / blocks / kPairs];
        const int64_t i = pair / S::kPairs, j = pair % S::kPairs;
        const int64_t value = S::kValue[i] * S::kValues + S::kValue[j], sum = S::kSum[i] * S::kSums + S::kSum[j];
        // Planes [low, high) of the part are those whose input plane at this tap is one of the image.
        const int64_t step = depth.input_step[0], first = part.box.origin[0], offset = tap.offset[0];
        const int64_t low = larger(0, ceil_div(larger(0, -offset), step) - first);
        const int64_t past = larger(0, shape.in_size[0] - offset);
        const int64_t high = larger(low, smaller(part.box.count[0], ceil_div(past, step) - first));
        all_products(
            v + ((value * groups + group) * inputs + (part.planes.shift(depth, tap) + low) * of_plane) * kLanes,
            w + ((sum * blocks + block) * outputs + low * of_plane) * kBlock, (high - low) * of_plane, add,
            total + task * kLanes * kBlock);
      }
    });
  }

  // G' U G for every vector of gathered channels and block of dense ones, into [dense][gathered][tap].
  void finish() const {
    const int64_t taps = depth.taps * kTaps;
    parallel_for(0, blocks * groups, 1, [&](int64_t begin, int64_t end) {
      float* local = static_cast<float*>(scratch(Scratch::worker, taps * kLanes * kBlock * sizeof(float)));
      for (int64_t task = begin; task < end; task++) {
        const int64_t group = task % groups, block = task / groups;
        for (int64_t d = 0; d < depth.taps; d++)
          for (int64_t c = 0; c < kLanes; c++)
            finish_taps(total + ((d * kPairs * blocks + block) * groups + group) * kLanes * kBlock + c * kBlock,
                        local + (c * taps + d * kTaps) * kBlock);
        const int64_t channel = group * kLanes, row = shape.in_channels * taps;
        transpose(local, kBlock, static_cast<float*>(args.weight_gradient) + block * kBlock * row + channel * taps, row,
                  smaller(kLanes, shape.in_channels - channel) * taps,
                  smaller(kBlock, shape.out_channels - block * kBlock));
      }
    });
  }

  // The taps of one gathered channel and a block of dense ones.
  void finish_taps(const float* from, float* to) const {
    for (int64_t n = 0; n < kBlock; n += kLanes) {
      vfloat half[S::kTaps][S::kPairs];
      for (int j = 0; j < S::kPairs; j++) {
        vfloat u[S::kPairs], taps[S::kTaps];
        for (int i = 0; i < S::kPairs; i++)
          u[i] = load(from + (i * S::kPairs + j) * blocks * groups * kLanes * kBlock + n);
        S::filter_gradient(u, taps);
        for (int i = 0; i < S::kTaps; i++) half[i][j] = taps[i];
      }
      for (int i = 0; i < S::kTaps; i++) {
        vfloat taps[S::kTaps];
        S::filter_gradient(half[i], taps);
        for (int j = 0; j < S::kTaps; j++) store(to + (i * S::kTaps + j) * kBlock + n, taps[j]);
      }
    }
  }

  void run() {
    Arena shared;
    for (int round = 0; round < 2; round++) {
      lay_out(shared);
      if (round == 0) shared = {static_cast<char*>(scratch(Scratch::shared, shared.used)), 0};
    }
    fill_geometry(gathered, false);
    fill_geometry(dense, false);
    fill_geometry(depth, false);
    std::memset(const_cast<float*>(zeros), 0, larger(shape.in_channels, shape.out_channels) * sizeof(float));
    for (int64_t index = 0; index < parts.number; index++) {
      const Part part(depth, box_at(parts, shape.batch, gathered.grid, index));
      transform(part);
      add_products(part, index > 0);
    }
    finish();
  }
};

template <class S>
void weight_gradient(const ConvWeightGradientArgs& args) {
  WinogradWeightGradient<S> gradient{args, args.shape, {}, {}, {}, {}, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr};
  gradient.run();
}

}  // namespace

void conv_winograd_weight_gradient(const ConvWeightGradientArgs& args) {
  if (args.winograd == Winograd::strided_large)
    weight_gradient<Strided4Large>(args);
  else if (args.shape.kernel[1] == 4)
    weight_gradient<Strided4>(args);
  else if (args.shape.stride[1] == 2)
    weight_gradient<Strided3>(args);
  else if (args.winograd == Winograd::unit_large)
    weight_gradient<Filter3Large>(args);
  else
    weight_gradient<Filter3>(args);
}

}  // namespace gencore::GENCORE_ISA
