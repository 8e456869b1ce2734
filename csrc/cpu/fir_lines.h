// Planes through a separable filter of four by four taps, at strides of one or two, line by line: an input row is
// filtered along itself once, in registers, and kept in the first-level cache until the last output row that it is part
// of. One stream is read and one is written.
#pragma once

#include "cpu/fir.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class T>
class FirLines {
 public:
  // `column` and `row`: the filter. Runs where fits() says so.
  FirLines(const Upfirdn2dArgs& args, const float* column, const float* row, bool streaming)
      : args(args), streaming(streaming) {
    for (int i = 0; fits() && i < kTaps; i++) column_tap[i] = column[i], row_tap[i] = row[i];
  }

  // Lines of more numbers would fill a second-level cache.
  bool fits() const {
    return args.channels == 1 && args.filter_height == kTaps && args.filter_width == kTaps && args.up_x == 1 &&
           args.up_y == 1 && args.down_x <= 2 && args.down_y <= 2 && args.pad_x >= -kLanes && args.pad_x <= kLanes &&
           args.out_width <= 8192;
  }

  void run() const {
    if (args.down_y == 1)
      args.down_x == 1 ? run<1, 1>() : run<1, 2>();
    else
      args.down_x == 1 ? run<2, 1>() : run<2, 2>();
  }

 private:
  static constexpr int kTaps = 4;
  // Output rows that are one task where planes are few: the rows above it are filtered once more.
  static constexpr int64_t kBlock = 32;

  struct Work {    // one thread's arrays
    T* zeros;      // an input row outside the image
    float* lines;  // [row modulo kTaps][line()]
  };
  Work take(Arena& arena) const {
    Work w{};
    w.zeros = arena.take<T>(args.in_width);
    w.lines = arena.take<float>(kTaps * line());
    return w;
  }
  // A few vectors more than needed: a load waits for a store that lies a multiple of 4096 bytes before it.
  int64_t line() const { return (ceil_div(args.out_width, kLanes) + 4) * kLanes; }

  template <int step_y, int step_x>
  void run() const {
    const int64_t rows = args.images >= 16 ? args.out_height : smaller(kBlock, args.out_height);
    const int64_t blocks = ceil_div(args.out_height, rows), elements = rows * args.out_width;
    parallel_for(0, args.images * blocks, kGrain / elements + 1, [&](int64_t begin, int64_t end) {
      Arena own;
      take(own);
      own = {static_cast<char*>(scratch(Scratch::worker, own.used)), 0};
      const Work w = take(own);
      std::memset(w.zeros, 0, args.in_width * sizeof(T));
      for (int64_t task = begin; task < end; task++) {
        const int64_t first = task % blocks * rows;
        filter_rows<step_y, step_x>(task / blocks, first, smaller(first + rows, args.out_height), w);
      }
      if (streaming) stream_fence();
    });
  }

  // Elements [at, at + step_x lanes) of a row, those outside it zero: as they are, or the even and the odd ones.
  template <int step_x>
  GENCORE_INLINE static void load_any(const T* x, int64_t at, int64_t width, vfloat (&to)[step_x]) {
    for (int s = 0; s < step_x; s++) to[s] = load_shifted(x, at + s * kLanes, width);
    if constexpr (step_x == 2) separate(to[0], to[1], &to[0], &to[1]);
  }
  template <int step_x>
  GENCORE_INLINE static void load_whole(const T* x, vfloat (&to)[step_x]) {
    for (int s = 0; s < step_x; s++) to[s] = load(x + s * kLanes);
    if constexpr (step_x == 2) separate(to[0], to[1], &to[0], &to[1]);
  }
  GENCORE_INLINE static vfloat load_shifted(const T* x, int64_t at, int64_t width) {
    if (at >= 0) return at < width ? load(x + at, smaller(kLanes, width - at)) : vfloat{};
    if (at <= -kLanes) return vfloat{};
    vint index;
    for (int i = 0; i < kLanes; i++) index[i] = static_cast<int32_t>(kLanes + at + i);
    return __builtin_shuffle(vfloat{}, load(x, smaller(kLanes, width)), index);
  }

  // v[by], ..., followed by the first elements of the next vector.
  template <int by>
  GENCORE_INLINE static vfloat moved(vfloat v, vfloat next) {
    vint index;
    for (int i = 0; i < kLanes; i++) index[i] = i + by;
    return __builtin_shuffle(v, next, index);
  }
  template <int step_x>
  GENCORE_INLINE static vfloat along(const vfloat (&v)[step_x], const vfloat (&next)[step_x],
                                     const vfloat (&tap)[kTaps]) {
    vfloat sum = v[0] * tap[0];
    if constexpr (step_x == 1) {
      sum += moved<1>(v[0], next[0]) * tap[1];
      sum += moved<2>(v[0], next[0]) * tap[2];
      sum += moved<3>(v[0], next[0]) * tap[3];
    } else {
      sum += v[1] * tap[1];
      sum += moved<1>(v[0], next[0]) * tap[2];
      sum += moved<1>(v[1], next[1]) * tap[3];
    }
    return sum;
  }

  template <int step_y, int step_x>
  void filter_rows(int64_t image, int64_t begin, int64_t end, const Work& w) const {
    constexpr int64_t stride = step_x * kLanes;
    // Copies of what the stores below might change, for all that the compiler knows.
    const int64_t width = args.in_width, height = args.in_height, size = args.out_width, line = this->line();
    const int64_t pad = args.pad_x, above = args.pad_y;
    const bool streaming = this->streaming;
    const T *x = static_cast<const T*>(args.x) + image * height * width, *zeros = w.zeros;
    T* y = static_cast<T*>(args.y) + (image * args.out_height + begin) * size;
    vfloat column[kTaps], row[kTaps];
    for (int k = 0; k < kTaps; k++) {
      column[k] = broadcast<vfloat>(column_tap[k]);
      row[k] = broadcast<vfloat>(row_tap[k]);
    }
    // Rows are counted from the first that the first output reaches.
    const auto input = [&](int64_t r) GENCORE_LAMBDA {
      const int64_t at = begin * step_y - above + r;
      return at >= 0 && at < height ? x + at * width : zeros;
    };
    // Up to here all vectors of a row, and the one behind, are whole.
    const int64_t whole = smaller(size / kLanes, (width + pad) / stride - 1);
    // body(i, h, n) for the vectors of the filtered row: n lanes from element i.
    const auto for_each = [&](const T* from, const auto& body) GENCORE_LAMBDA {
      vfloat now[step_x], next[step_x];
      const auto turn = [&](int64_t i, int64_t n) GENCORE_LAMBDA {
        const vfloat h = along<step_x>(now, next, row);
        for (int s = 0; s < step_x; s++) now[s] = next[s];
        body(i, h, n);
      };
      const auto edge = [&](int64_t i) GENCORE_LAMBDA {
        load_any<step_x>(from, (i + kLanes) * step_x - pad, width, next);
        turn(i, smaller(kLanes, size - i));
      };
      load_any<step_x>(from, -pad, width, now);
      int64_t i = 0;
      if (pad > 0) edge(i), i += kLanes;
      for (; i < whole * kLanes; i += kLanes) {
        const T* at = from + (i + kLanes) * step_x - pad;
        load_whole<step_x>(at, next);
        __builtin_prefetch(at + kAhead);
        turn(i, kLanes);
      }
      for (; i < size; i += kLanes) edge(i);
    };
    const auto keep = [&](int64_t r) GENCORE_LAMBDA {
      float* to = w.lines + r % kTaps * line;
      for_each(input(r), [&](int64_t i, vfloat h, int64_t) GENCORE_LAMBDA { store(to + i, h); });
    };

    for (int64_t r = 0; r < kTaps - step_y; r++) keep(r);
    for (int64_t o = begin, r = kTaps - step_y; o < end; o++, r++, y += size) {
      if constexpr (step_y == 2) keep(r++);
      const Finish<float> finish(args, true, image, o);
      const float* before[kTaps - 1];
      for (int k = 0; k < kTaps - 1; k++) before[k] = w.lines + (r + 1 + k) % kTaps * line;
      float* to = w.lines + r % kTaps * line;
      for_each(input(r), [&](int64_t i, vfloat h, int64_t n) GENCORE_LAMBDA {
        store(to + i, h);
        vfloat sum = h * column[kTaps - 1];
        for (int k = 0; k < kTaps - 1; k++) sum += load(before[k] + i) * column[k];
        sum = finish(sum, i, n, 0.0f);
        if (streaming)
          stream(y + i, sum);
        else
          store(y + i, sum, n);
      });
    }
  }

  const Upfirdn2dArgs& args;
  bool streaming;
  float column_tap[kTaps] = {}, row_tap[kTaps] = {};
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
