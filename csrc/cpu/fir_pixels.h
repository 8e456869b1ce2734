// channels_last images through a separable filter of four by four taps, as they are, doubled, or at strides of one or
// two: two output rows at once, pixel by pixel, with all channels of each. Everything that is large is read and written
// as it lies; the column's sums of the last four pixels stay in the first-level cache.
#pragma once

#include "cpu/fir.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class T>
class FirPixels : private FourTaps<compute_t<T>> {
 public:
  // `column` and `row`: the filter. Runs where fits() says so.
  FirPixels(const Upfirdn2dArgs& args, const compute_t<T>* column, const compute_t<T>* row, bool streaming)
      : FourTaps<compute_t<T>>(args, column, row),
        args(args),
        row_length(args.in_width * args.channels),
        streaming(streaming) {}

  // Pixels of fewer numbers than a vector has waste it; of many more, a first-level cache would not hold the sums.
  bool fits() const { return this->found && args.channels > 1 && args.channels >= lanes && args.channels <= 1024; }

  void run() const {
    if (this->doubled)
      run_doubled();
    else if (args.down_y == 1)
      args.down_x == 1 ? run<1, 1>() : run<1, 2>();
    else
      args.down_x == 1 ? run<2, 1>() : run<2, 2>();
  }

 private:
  using C = compute_t<T>;
  using V = vector_t<C>;
  using Four = FourTaps<C>;
  using Four::column_tap, Four::columns, Four::kTaps, Four::phases, Four::row_tap;
  static constexpr int lanes = Vector<C>::lanes, kRows = 2;

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

  // body(image, o, work) for the first rows of all pairs of output rows.
  template <class Body>
  void for_each_pair(const Body& body) const {
    const int64_t pairs = ceil_div(args.out_height, kRows), elements = kRows * args.out_width * args.channels;
    parallel_for(0, args.images * pairs, kGrain / elements + 1, [&](int64_t begin, int64_t end) {
      Arena own;
      take(own);
      own = {static_cast<char*>(scratch(Scratch::worker, own.used)), 0};
      const Work w = take(own);
      std::memset(w.zeros, 0, row_length * sizeof(T));
      for (int64_t task = begin; task < end; task++) body(task / pairs, task % pairs * kRows, w);
      if (streaming) stream_fence();
    });
  }

  template <int step_y, int step_x>
  void run() const {
    for_each_pair([&](int64_t image, int64_t o, const Work& w) {
      if (o + 1 < args.out_height)
        filter_rows<2, step_y, step_x>(image, o, w);
      else
        filter_rows<1, step_y, step_x>(image, o, w);
    });
  }

  void run_doubled() const {
    const bool down = columns[0].base != columns[1].base, along = phases[0].base != phases[1].base;
    for_each_pair([&](int64_t image, int64_t o, const Work& w) {
      if (down)
        along ? double_rows<1, 1>(image, o, w) : double_rows<1, 0>(image, o, w);
      else
        along ? double_rows<0, 1>(image, o, w) : double_rows<0, 0>(image, o, w);
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

  // Output rows o and o + 1 (if there is one), o even: each of two input rows, the second's `down` below the first's.
  // So it is along the rows, where the odd pixels begin `along` behind the even ones.
  template <int down, int along>
  void double_rows(int64_t image, int64_t o, const Work& w) const {
    constexpr int inputs = 2 + down, kept = 1 + along;
    const T* x = static_cast<const T*>(args.x) + image * args.in_height * row_length;
    const T* rows[inputs];
    for (int k = 0; k < inputs; k++) {
      const int64_t row = columns[0].base + o / 2 + k;
      rows[k] = row >= 0 && row < args.in_height ? x + row * row_length : w.zeros;
    }
    // Copies of what the stores below might change, for all that the compiler knows.
    const int64_t channels = args.channels, slot = this->slot(), second = ceil_div(channels, lanes) * lanes;
    const int64_t output_row = args.out_width * channels, width = args.in_width, start = phases[0].base;
    const int count = o + 1 < args.out_height ? 2 : 1;
    const bool streaming = this->streaming;
    V column[2][2], row[2][2];
    for (int p = 0; p < 2; p++)
      for (int k = 0; k < 2; k++) {
        column[p][k] = broadcast<V>(column_tap[columns[p].first + 2 * k]);
        row[p][k] = broadcast<V>(row_tap[phases[p].first + 2 * k]);
      }
    const Finish<C> finish[kRows] = {{args, false, image, o}, {args, false, image, o + count - 1}};

    // Pixels are counted from the first that the first output reaches; outside the image they are zeros.
    const T* from[inputs];
    const auto move_to = [&](int64_t p) GENCORE_LAMBDA {
      const int64_t pixel = start + p;
      for (int k = 0; k < inputs; k++) from[k] = pixel >= 0 && pixel < width ? rows[k] + pixel * channels : w.zeros;
    };
    const auto weigh = [&](C* to, int64_t c, int64_t n, V(&sum)[2]) GENCORE_LAMBDA {
      V v[inputs];
      for (int k = 0; k < inputs; k++) v[k] = load(from[k] + c, n);
      __builtin_prefetch(from[inputs - 1] + c + kAhead);
      for (int r = 0; r < 2; r++) {
        sum[r] = v[r * down] * column[r][0] + v[r * down + 1] * column[r][1];
        store(to + r * second + c, sum[r]);
      }
    };
    for (int64_t p = 0; p < kept; p++) {
      move_to(p);
      for (int64_t c = 0; c < channels; c += lanes) {
        V sum[2];
        weigh(w.sums + p * slot, c, smaller(lanes, channels - c), sum);
      }
    }
    T* y = static_cast<T*>(args.y) + (image * args.out_height + o) * output_row;
    for (int64_t q = 0; 2 * q < args.out_width; q++, y += 2 * channels) {
      const bool odd = 2 * q + 1 < args.out_width;
      const C* before[kept];
      for (int j = 0; j < kept; j++) before[j] = w.sums + (q + j) % kTaps * slot;
      C* to = w.sums + (q + kept) % kTaps * slot;
      move_to(q + kept);
      const auto filter = [&](int64_t c, int64_t n) GENCORE_LAMBDA {
        V sum[2];
        weigh(to, c, n, sum);
        const auto finish_row = [&](int r) GENCORE_LAMBDA {
          V at[kept + 1];
          for (int j = 0; j < kept; j++) at[j] = load(before[j] + r * second + c);
          at[kept] = sum[r];
          const C* noise = finish[r].noise;
          const V out[2] = {at[0] * row[0][0] + at[1] * row[0][1], at[along] * row[1][0] + at[along + 1] * row[1][1]};
          for (int p = 0; p < 1 + odd; p++) {
            const V value = finish[r](out[p], c, n, noise ? noise[2 * q + p] : C{0});
            T* result = y + r * output_row + p * channels + c;
            if (streaming)
              stream(result, value);
            else
              store(result, value, n);
          }
        };
        finish_row(0);
        if (count == 2) finish_row(1);
      };
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes) filter(c, lanes);
      if (c < channels) filter(c, channels - c);
    }
  }

  const Upfirdn2dArgs& args;
  int64_t row_length;
  bool streaming;
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
