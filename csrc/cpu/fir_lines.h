// Planes through a separable filter of four by four taps, as they are, doubled, or at strides of one or two, line by
// line: an input row is filtered along itself once, in registers, and kept in the first-level cache until the last
// output row that it is part of. One stream is read and one is written.
#pragma once

#include "cpu/fir.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class T>
class FirLines : private FourTaps<float> {
 public:
  // `column` and `row`: the filter. Runs where fits() says so.
  FirLines(const Upfirdn2dArgs& args, const float* column, const float* row, bool streaming)
      : FourTaps(args, column, row), args(args), streaming(streaming) {}

  // Lines of more numbers would fill a second-level cache.
  bool fits() const {
    return found && args.channels == 1 && args.pad_x >= -kLanes && args.pad_x <= kLanes && args.out_width <= 8192;
  }

  void run() const {
    if (doubled)
      phases[0].base == phases[1].base ? run<Doubled<0>, 1>() : run<Doubled<1>, 1>();
    else if (args.down_y == 1)
      args.down_x == 1 ? run<Plain, 1>() : run<Halved, 1>();
    else
      args.down_x == 1 ? run<Plain, 2>() : run<Halved, 2>();
  }

 private:
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

  template <class Along, int step_y>
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
        filter_rows<Along, step_y>(task / blocks, first, smaller(first + rows, args.out_height), w);
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
  // The filter along a row: `up` vectors of outputs from `step` of inputs and as many that follow. `lead`: how far
  // before the row the first output begins.
  struct Single {
    static constexpr int up = 1;
    vfloat tap[kTaps];
    int64_t lead;
    GENCORE_INLINE explicit Single(const FirLines& of) : lead(of.args.pad_x) {
      for (int k = 0; k < kTaps; k++) tap[k] = broadcast<vfloat>(of.row_tap[k]);
    }
  };
  struct Plain : Single {
    static constexpr int step = 1;
    using Single::Single;
    using Single::tap;
    GENCORE_INLINE void operator()(const vfloat (&v)[1], const vfloat (&next)[1], vfloat (&out)[1]) const {
      out[0] = v[0] * tap[0];
      out[0] += moved<1>(v[0], next[0]) * tap[1];
      out[0] += moved<2>(v[0], next[0]) * tap[2];
      out[0] += moved<3>(v[0], next[0]) * tap[3];
    }
  };
  struct Halved : Single {
    static constexpr int step = 2;
    using Single::Single;
    using Single::tap;
    GENCORE_INLINE void operator()(const vfloat (&v)[2], const vfloat (&next)[2], vfloat (&out)[1]) const {
      out[0] = v[0] * tap[0];
      out[0] += v[1] * tap[1];
      out[0] += moved<1>(v[0], next[0]) * tap[2];
      out[0] += moved<1>(v[1], next[1]) * tap[3];
    }
  };
  // The odd outputs begin `apart` inputs behind the even ones.
  template <int apart>
  struct Doubled {
    static constexpr int up = 2, step = 1;
    vfloat tap[2][2];
    int64_t lead;
    GENCORE_INLINE explicit Doubled(const FirLines& of) : lead(-of.phases[0].base) {
      for (int p = 0; p < 2; p++)
        for (int k = 0; k < 2; k++) tap[p][k] = broadcast<vfloat>(of.row_tap[of.phases[p].first + 2 * k]);
    }
    GENCORE_INLINE void operator()(const vfloat (&v)[1], const vfloat (&next)[1], vfloat (&out)[2]) const {
      const vfloat second = moved<1>(v[0], next[0]);
      const vfloat even = v[0] * tap[0][0] + second * tap[0][1];
      const vfloat odd =
          apart == 0 ? v[0] * tap[1][0] + second * tap[1][1] : second * tap[1][0] + moved<2>(v[0], next[0]) * tap[1][1];
      interleave(even, odd, &out[0], &out[1]);
    }
  };

  template <class Along, int step_y>
  void filter_rows(int64_t image, int64_t begin, int64_t end, const Work& w) const {
    constexpr int up = Along::up, step_x = Along::step;
    constexpr int64_t stride = step_x * kLanes;
    const Along along(*this);
    // Copies of what the stores below might change, for all that the compiler knows.
    const int64_t width = args.in_width, height = args.in_height, size = args.out_width, line = this->line();
    const int64_t lead = along.lead;
    const bool streaming = this->streaming;
    const T *x = static_cast<const T*>(args.x) + image * height * width, *zeros = w.zeros;
    T* y = static_cast<T*>(args.y) + (image * args.out_height + begin) * size;
    vfloat column[kTaps];
    for (int k = 0; k < kTaps; k++) column[k] = broadcast<vfloat>(column_tap[k]);
    // Rows are counted from the first that the first output reaches.
    const int64_t above = up == 2 ? columns[0].base + begin / 2 : begin * step_y - args.pad_y;
    const auto input = [&](int64_t r) GENCORE_LAMBDA {
      return above + r >= 0 && above + r < height ? x + (above + r) * width : zeros;
    };
    // Up to here all vectors of a row, and the ones behind, are whole.
    const int64_t whole = smaller(size / (up * kLanes), (width + lead) / stride - 1);
    // body(i, h, n) for the vectors of the filtered row: n lanes from element i.
    const auto for_each = [&](const T* from, const auto& body) GENCORE_LAMBDA {
      vfloat now[step_x], next[step_x];
      const auto turn = [&](int64_t vector, int64_t left) GENCORE_LAMBDA {
        vfloat h[up];
        along(now, next, h);
        for (int s = 0; s < step_x; s++) now[s] = next[s];
        for (int u = 0; u < up; u++, left -= kLanes)
          if (left > 0) body((vector * up + u) * kLanes, h[u], smaller(kLanes, left));
      };
      const auto edge = [&](int64_t vector) GENCORE_LAMBDA {
        load_any<step_x>(from, (vector + 1) * stride - lead, width, next);
        turn(vector, size - vector * up * kLanes);
      };
      load_any<step_x>(from, -lead, width, now);
      int64_t i = 0;
      if (lead > 0) edge(i++);
      for (; i < whole; i++) {
        const T* at = from + (i + 1) * stride - lead;
        load_whole<step_x>(at, next);
        __builtin_prefetch(at + kAhead);
        turn(i, up * kLanes);
      }
      for (; i * up * kLanes < size; i++) edge(i);
    };
    const auto line_of = [&](int64_t r) GENCORE_LAMBDA { return w.lines + r % kTaps * line; };
    const auto keep = [&](int64_t r) GENCORE_LAMBDA {
      float* to = line_of(r);
      for_each(input(r), [&](int64_t i, vfloat h, int64_t) GENCORE_LAMBDA { store(to + i, h); });
    };
    const auto put = [&](const Finish<float>& finish, int64_t i, vfloat v, int64_t n) GENCORE_LAMBDA {
      v = finish(v, i, n, 0.0f);
      if (streaming)
        stream(y + i, v);
      else
        store(y + i, v, n);
    };

    if constexpr (up == 2) {
      int64_t kept = 0;
      for (int64_t o = begin; o < end; o++, y += size) {
        const Phase& phase = columns[o % 2];
        const int64_t r = phase.base + o / 2 - above;
        for (; kept < r + 2; kept++) keep(kept);
        const Finish<float> finish(args, true, image, o);
        const float *upper = line_of(r), *lower = line_of(r + 1);
        const vfloat first = broadcast<vfloat>(column_tap[phase.first]);
        const vfloat second = broadcast<vfloat>(column_tap[phase.first + 2]);
        for_each_vector<kLanes>(size, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
          put(finish, i, load(upper + i) * first + load(lower + i) * second, n);
        });
      }
    } else {
      for (int64_t r = 0; r < kTaps - step_y; r++) keep(r);
      for (int64_t o = begin, r = kTaps - step_y; o < end; o++, r++, y += size) {
        if constexpr (step_y == 2) keep(r++);
        const Finish<float> finish(args, true, image, o);
        const float* before[kTaps - 1];
        for (int k = 0; k < kTaps - 1; k++) before[k] = line_of(r + 1 + k);
        float* to = line_of(r);
        for_each(input(r), [&](int64_t i, vfloat h, int64_t n) GENCORE_LAMBDA {
          store(to + i, h);
          vfloat sum = h * column[kTaps - 1];
          for (int k = 0; k < kTaps - 1; k++) sum += load(before[k] + i) * column[k];
          put(finish, i, sum, n);
        });
      }
    }
  }

  const Upfirdn2dArgs& args;
  bool streaming;
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
