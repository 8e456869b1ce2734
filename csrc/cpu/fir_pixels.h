// channels_last images through a separable filter of four by four taps, at strides of one or two: two output rows at
// once, pixel by pixel, with all channels of each. Everything that is large is read and written as it lies; the
// column's sums of the last four pixels stay in the first-level cache.
#pragma once

#include "cpu/fir.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class T>
class FirPixels {
 public:
  // `column` and `row`: the filter. Runs where fits() says so.
  FirPixels(const Upfirdn2dArgs& args, const compute_t<T>* column, const compute_t<T>* row, bool streaming)
      : args(args), row_length(args.in_width * args.channels), streaming(streaming) {
    for (int i = 0; fits() && i < kTaps; i++) column_tap[i] = column[i], row_tap[i] = row[i];
  }

  // Pixels of fewer numbers than a vector has waste it; of many more, a first-level cache would not hold the sums.
  bool fits() const {
    return args.channels > 1 && args.channels >= lanes && args.channels <= 1024 && args.filter_height == kTaps &&
           args.filter_width == kTaps && args.up_x == 1 && args.up_y == 1 && args.down_x <= 2 && args.down_y <= 2;
  }

  void run() const {
    if (args.down_y == 1)
      args.down_x == 1 ? run<1, 1>() : run<1, 2>();
    else
      args.down_x == 1 ? run<2, 1>() : run<2, 2>();
  }

 private:
  using C = compute_t<T>;
  using V = vector_t<C>;
  static constexpr int lanes = Vector<C>::lanes, kTaps = 4, kRows = 2;

  struct Work {  // one thread's arrays
    T* zeros;    // an input row outside the image
    C* sums;     // [pixel modulo kTaps][kRows][channels]
  };

  Work take(Arena& arena) const {
    Work w{};
    w.zeros = arena.take<T>(row_length);
    w.sums = arena.take<C>(kTaps * slot());
    return w;
  }
  // A few vectors more than needed: a load waits for a store that lies a multiple of 4096 bytes before it.
  int64_t slot() const { return kRows * ceil_div(args.channels, lanes) * lanes + 4 * lanes; }

  template <int step_y, int step_x>
  void run() const {
    const int64_t pairs = ceil_div(args.out_height, kRows), elements = kRows * args.out_width * args.channels;
    parallel_for(0, args.images * pairs, kGrain / elements + 1, [&](int64_t begin, int64_t end) {
      Arena own;
      take(own);
      own = {static_cast<char*>(scratch(Scratch::worker, own.used)), 0};
      const Work w = take(own);
      std::memset(w.zeros, 0, row_length * sizeof(T));
      for (int64_t task = begin; task < end; task++) {
        const int64_t image = task / pairs, o = task % pairs * kRows;
        if (o + 1 < args.out_height)
          filter_rows<2, step_y, step_x>(image, o, w);
        else
          filter_rows<1, step_y, step_x>(image, o, w);
      }
      if (streaming) stream_fence();
    });
  }

  template <int count, int step_y, int step_x>
  void filter_rows(int64_t image, int64_t o, const Work& w) const {
    constexpr int inputs = kTaps + (count - 1) * step_y, kept = kTaps - step_x;
    const T* x = static_cast<const T*>(args.x) + image * args.in_height * row_length;
    const T* rows[inputs];
    for (int k = 0; k < inputs; k++) {
      const int64_t row = o * step_y - args.pad_y + k;
      rows[k] = row >= 0 && row < args.in_height ? x + row * row_length : w.zeros;
    }
    // Copies of what the stores below might change, for all that the compiler knows.
    const int64_t channels = args.channels, slot = this->slot(), second = ceil_div(channels, lanes) * lanes;
    const int64_t output_row = args.out_width * channels, width = args.in_width;
    const bool streaming = this->streaming;
    V column[kTaps], row[kTaps];
    for (int k = 0; k < kTaps; k++) column[k] = broadcast<V>(column_tap[k]), row[k] = broadcast<V>(row_tap[k]);
    const Finish<C> finish[kRows] = {{args, false, image, o}, {args, false, image, o + count - 1}};

    // Pixels are counted from the first that the first output reaches; outside the image they are zeros.
    const auto pixel_of = [&](const T* const* of, int64_t p, const T** from) GENCORE_LAMBDA {
      const int64_t pixel = p - args.pad_x;
      for (int k = 0; k < inputs; k++) from[k] = pixel >= 0 && pixel < width ? of[k] + pixel * channels : w.zeros;
    };
    const auto weigh = [&](const T* const* from, C* to, int64_t c, int64_t n, V(&sum)[count]) GENCORE_LAMBDA {
      for (int r = 0; r < count; r++) sum[r] = V{};
#pragma GCC unroll 8
      for (int k = 0; k < inputs; k++) {
        if (k >= inputs - count * step_y) __builtin_prefetch(from[k] + c + kAhead);
        const V v = load(from[k] + c, n);
        for (int r = 0; r < count; r++)
          if (k >= r * step_y && k < r * step_y + kTaps) sum[r] += v * column[k - r * step_y];
      }
      for (int r = 0; r < count; r++) store(to + r * second + c, sum[r]);
    };
    const T* from[step_x][inputs];
    for (int64_t p = 0; p < kept; p++) {
      pixel_of(rows, p, from[0]);
      for (int64_t c = 0; c < channels; c += lanes) {
        V sum[count];
        weigh(from[0], w.sums + p * slot, c, smaller(lanes, channels - c), sum);
      }
    }
    T* y = static_cast<T*>(args.y) + (image * args.out_height + o) * output_row;
    for (int64_t o_x = 0, p = 0; o_x < args.out_width; o_x++, p += step_x, y += channels) {
      const C* before[kept];
      C* to[step_x];
      C noise[count];
      for (int j = 0; j < kept; j++) before[j] = w.sums + (p + j) % kTaps * slot;
      for (int i = 0; i < step_x; i++) {
        to[i] = w.sums + (p + kept + i) % kTaps * slot;
        pixel_of(rows, p + kept + i, from[i]);
      }
      for (int r = 0; r < count; r++) noise[r] = finish[r].noise ? finish[r].noise[o_x] : C{0};
      const auto filter = [&](int64_t c, int64_t n) GENCORE_LAMBDA {
        V out[count] = {}, sum[count];
        for (int j = 0; j < kept; j++)
          for (int r = 0; r < count; r++) out[r] += load(before[j] + r * second + c) * row[j];
        for (int i = 0; i < step_x; i++) {
          weigh(from[i], to[i], c, n, sum);
          for (int r = 0; r < count; r++) out[r] += sum[r] * row[kept + i];
        }
        for (int r = 0; r < count; r++) {
          const V value = finish[r](out[r], c, n, noise[r]);
          if (streaming)
            stream(y + r * output_row + c, value);
          else
            store(y + r * output_row + c, value, n);
        }
      };
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes) filter(c, lanes);
      if (c < channels) filter(c, channels - c);
    }
  }

  const Upfirdn2dArgs& args;
  int64_t row_length;
  bool streaming;
  C column_tap[kTaps] = {}, row_tap[kTaps] = {};
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
