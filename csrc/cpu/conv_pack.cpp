#include "cpu/conv_geometry.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

// Panel rows [k, k + 1) of one tap and one block of columns; columns past the last are zero.
template <class T>
void pack_panel(const T* from, int64_t column_stride, int64_t length_stride, int64_t columns, int64_t width,
                int64_t length, T* panel) {
  constexpr int pack = Tile<T>::pack;
  if (columns < width || length % pack != 0) std::memset(panel, 0, ceil_div(length, pack) * pack * width * sizeof(T));
  if (column_stride == 1 && pack == 1) {
    for (int64_t k = 0; k < length; k++) std::memcpy(panel + k * width, from + k * length_stride, columns * sizeof(T));
  } else if (length_stride == 1 && pack == 1) {
    transpose(from, column_stride, panel, width, columns, length);
  } else {
    for (int64_t k = 0; k < length; k++)
      for (int64_t n = 0; n < columns; n++)
        panel[(k / pack * width + n) * pack + k % pack] = from[k * length_stride + n * column_stride];
  }
}

int64_t tap_offset(const ConvPackArgs& args, int64_t tap) {
  const int64_t d = tap / (args.kernel[1] * args.kernel[2]), h = tap / args.kernel[2] % args.kernel[1],
                w = tap % args.kernel[2];
  return d * args.kernel_stride[0] + h * args.kernel_stride[1] + w * args.kernel_stride[2];
}

// A convolution's taps are reversed: then they meet the output pixels around an input pixel in ascending order, as
// those of a transposed convolution do.
template <class T>
void pack_scatter(const ConvPackArgs& args, const ScatterLayout& layout, int64_t columns, int64_t column_stride,
                  int64_t length_stride, T* packed) {
  const int64_t taps = product(args.kernel);
  std::memset(packed, 0, layout.size() * sizeof(T));
  parallel_for(0, layout.length, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = 0, tap = 0; b < layout.blocks(); b++) {
      const int64_t width = layout.vectors(b) * kLanes, filled = layout.rows(b) * layout.unit;
      T* panel = packed + layout.offset(b) * layout.length;
      for (int64_t j = 0; j < filled; j += columns, tap++) {
        const T* from =
            static_cast<const T*>(args.weight) + tap_offset(args, args.columns_first ? taps - 1 - tap : tap);
        for (int64_t k = begin; k < end; k++)
          for (int64_t n = 0; n < columns; n++) panel[k * width + j + n] = from[n * column_stride + k * length_stride];
      }
    }
  });
}

template <class T>
void pack(const ConvPackArgs& args) {
  const int64_t columns = args.columns_first ? args.size0 : args.size1;
  const int64_t length = args.columns_first ? args.size1 : args.size0;
  const int64_t column_stride = args.columns_first ? args.stride0 : args.stride1;
  const int64_t length_stride = args.columns_first ? args.stride1 : args.stride0;
  const int64_t taps = product(args.kernel);
  const PanelLayout<T> layout{args.groups, columns, length, taps};
  const ScatterLayout scatter{columns, length, args.kernel};
  const bool scatters = layout.few() && args.groups == 1 && scatter.exists();
  *args.bytes = (layout.size() + (scatters ? scatter.size() : 0)) * static_cast<int64_t>(sizeof(T));
  if (!args.packed) return;
  const T* weight = static_cast<const T*>(args.weight);
  T* packed = static_cast<T*>(args.packed);
  if (scatters) pack_scatter(args, scatter, columns, column_stride, length_stride, packed + layout.size());
  if (layout.few()) {
    const int64_t padded = layout.padded_length();
    parallel_for(0, args.groups * taps * columns, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t n = row % columns, tap = row / columns % taps, group = row / columns / taps;
        const T* from = weight + group * args.size0 * args.stride0 + n * column_stride + tap_offset(args, tap);
        for (int64_t k = 0; k < padded; k++) packed[row * padded + k] = k < length ? from[k * length_stride] : T{};
      }
    });
    return;
  }
  // A panel is cut along its length too, so that all taps of a few input rows are taken while their lines are in cache.
  constexpr int64_t kRows = 64;
  const int64_t cuts = ceil_div(length, kRows), blocks = layout.blocks();
  parallel_for(0, args.groups * blocks * cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t k = task % cuts * kRows, b = task / cuts % blocks, group = task / cuts / blocks;
      const int64_t width = layout.vectors(b) * PanelLayout<T>::lanes, first = b * PanelLayout<T>::block;
      const T* from = weight + group * args.size0 * args.stride0 + first * column_stride + k * length_stride;
      T* to = packed + layout.offset(group, b) + k * width;
      for (int64_t tap = 0; tap < taps; tap++) {
        pack_panel(from + tap_offset(args, tap), column_stride, length_stride, smaller(columns - first, width), width,
                   smaller(length - k, kRows), to + tap * layout.tap_size(b));
      }
    }
  });
}

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 32);
}

}  // namespace

void conv_pack(const ConvPackArgs& args) {
  switch (args.dtype) {
    case Dtype::float64:
      return pack<double>(args);
    case Dtype::bfloat16:
      return pack<bfloat16>(args);
    default:
      return pack<float>(args);
  }
}

// A hash that a change of the data changes, but for one chance in 2^32: a packed weight is reused only while this
// agrees too, because changes through `tensor.data` leave the version counter alone. A product alone carries bits
// upwards only, and a change of all signs or exponents could cancel out: the shift brings them down again.
void fingerprint(const FingerprintArgs& args) {
  constexpr int64_t kChunk = 1 << 18, kStreams = 8;
  constexpr int64_t step = kStreams * sizeof(vuint);
  const char* data = static_cast<const char*>(args.data);
  const int64_t chunks = ceil_div(args.bytes, kChunk);
  Arena arena;
  arena.base = static_cast<char*>(scratch(Scratch::shared, chunks * sizeof(uint64_t) + 64));
  uint64_t* hashes = arena.take<uint64_t>(chunks);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; chunk++) {
      const char* p = data + chunk * kChunk;
      const int64_t bytes = smaller(kChunk, args.bytes - chunk * kChunk);
      vuint h[kStreams];
      for (int i = 0; i < kStreams; i++) h[i] = vuint{} + static_cast<uint32_t>(i + 1);
      int64_t at = 0;
      for (; at + step <= bytes; at += step)
#pragma GCC unroll 8
        for (int i = 0; i < kStreams; i++) {
          vuint word;
          std::memcpy(&word, p + at + i * sizeof word, sizeof word);
          h[i] = (h[i] ^ word) * 0x9E3779B1u;
          h[i] ^= h[i] >> 15;
        }
      uint64_t hash = static_cast<uint64_t>(bytes);
      for (; at < bytes; at++) hash = mix(hash, static_cast<unsigned char>(p[at]));
      for (int i = 0; i < kStreams; i++)
        for (int lane = 0; lane < kLanes; lane++) hash = mix(hash, h[i][lane]);
      hashes[chunk] = hash;
    }
  });
  uint64_t hash = 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) hash = mix(hash, hashes[chunk]);
  *args.result = hash;
}

}  // namespace gencore::GENCORE_ISA
