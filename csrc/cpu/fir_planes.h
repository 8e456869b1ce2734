// Planes through a separable filter, in registers: each vector of an output row's weighed input rows is summed once,
// and its neighbours' elements are shuffled in. Nothing is kept in memory between the two halves of the filter.
#pragma once

#include <type_traits>

#include "cpu/fir.h"
#include "gencore/parallel.h"

namespace gencore::GENCORE_ISA {

namespace {

template <class T>
class FirPlanes {
 public:
  // `rows`: the y axis' phase of each output row; `column` and `row`: the filter. Runs where fits() says so.
  FirPlanes(const Upfirdn2dArgs& args, const Axis& x_axis, const Axis& y_axis, const Phase* rows, const float* column,
            const float* row, bool streaming)
      : args(args), x_axis(x_axis), y_axis(y_axis), rows(rows), column(column), streaming(streaming) {
    reachable = args.channels == 1 && x_axis.phases * x_axis.step <= 2 &&
                ceil_div(args.filter_height, y_axis.up) <= kMostRows &&
                ceil_div(args.filter_width, x_axis.up) <= kMostTerms;
    if (reachable) reach(row);
  }

  bool fits() const { return reachable; }

  void run() const {
    if (x_axis.phases == 2)
      run<2, 1>();
    else if (x_axis.step == 2)
      run<1, 2>();
    else
      run<1, 1>();
  }

 private:
  static constexpr int kMostRows = 16, kMostTerms = 16;

  // The taps of one phase of the outputs on one residue of the inputs. A window, picked from two neighbouring vectors,
  // begins with the element that the first tap weighs; the elements of the others are picked from two such windows.
  struct Terms {
    int64_t first = 0;  // where a window begins, from the output's own place
    int count = 0;
    vint window;
    vfloat tap[kMostTerms];
    vint index[kMostTerms];
  };
  // The input rows that an output row is made of, and the weight of each.
  struct From {
    int count = 0;
    const T* row[kMostRows];
    float tap[kMostRows];
  };

  void reach(const float* row) {
    int64_t lowest = kLanes;
    for (int64_t p = 0; p < x_axis.phases; p++) {
      const Phase phase = x_axis.phase(p);
      for (int64_t j = 0; j < phase.count; j++) {
        const int64_t residue = modulo(phase.base + j, x_axis.step), shift = (phase.base + j - residue) / x_axis.step;
        Terms& to = terms[p][residue];
        if (to.count == 0) to.first = shift;
        reachable = reachable && shift - to.first < kLanes;
        to.index[to.count] = counted_from(shift - to.first);
        to.tap[to.count++] = broadcast<vfloat>(row[phase.first + j * x_axis.up]);
        lowest = smaller(lowest, shift);
      }
    }
    origin = lowest < 0 ? -1 : 0;
    for (int64_t p = 0; p < x_axis.phases; p++)
      for (int64_t residue = 0; residue < x_axis.step; residue++) {
        const int64_t from = terms[p][residue].first - origin * kLanes;
        reachable = reachable && from >= 0 && from <= kLanes;
        terms[p][residue].window = counted_from(from);
      }
  }

  static vint counted_from(int64_t start) {
    vint v;
    for (int i = 0; i < kLanes; i++) v[i] = static_cast<int32_t>(start + i);
    return v;
  }

  template <int phases, int step>
  void run() const {
    parallel_for(0, args.images * args.out_height, kGrain / args.out_width + 1, [&](int64_t begin, int64_t end) {
      int64_t image = begin / args.out_height, o = begin % args.out_height;
      T* y = static_cast<T*>(args.y) + begin * args.out_width;
      for (int64_t task = begin; task < end; task++, y += args.out_width) {
        const Finish<float> finish(args, true, image, o);
        const From from = weighed_rows(image, o);
        filter_row<phases, step>(from, finish, y);
        if (++o == args.out_height) image++, o = 0;
      }
      if (streaming) stream_fence();
    });
  }

  From weighed_rows(int64_t image, int64_t o) const {
    From from;
    const Phase& phase = rows[o];
    const T* x = static_cast<const T*>(args.x) + image * args.in_height * args.in_width;
    const int64_t end = smaller(phase.count, args.in_height - phase.base);
    for (int64_t j = larger(0, -phase.base); j < end; j++) {
      from.row[from.count] = x + (phase.base + j) * args.in_width;
      from.tap[from.count++] = column[phase.first + j * y_axis.up];
    }
    return from;
  }

  template <int phases, int step>
  void filter_row(const From& from, const Finish<float>& finish, T* y) const {
    constexpr int64_t stride = kLanes * phases;
    const int64_t size = args.out_width, width = args.in_width, start = origin;
    // Copies that the compiler knows no store to change: it keeps them in registers.
    const bool past_caches = streaming, two_new = y_axis.down > 1;
    vint window_index[phases][step];
    for (int p = 0; p < phases; p++)
      for (int s = 0; s < step; s++) window_index[p][s] = terms[p][s].window;
    vfloat now[step], next[step], window[phases][step];
    weigh<step>(from, start, width, now);
    weigh<step>(from, start + 1, width, next);
    for (int p = 0; p < phases; p++)
      for (int s = 0; s < step; s++) window[p][s] = __builtin_shuffle(now[s], next[s], window_index[p][s]);

    const auto turn = [&](int64_t block, auto is_whole) GENCORE_LAMBDA {
      constexpr bool whole = decltype(is_whole)::value;
      vfloat after[step], out[phases];
      if constexpr (whole)
        weigh_whole<step>(from, block + start + 2, two_new, after);
      else
        weigh<step>(from, block + start + 2, width, after);
      for (int p = 0; p < phases; p++) {
        out[p] = vfloat{};
        for (int s = 0; s < step; s++) {
          const vfloat following = __builtin_shuffle(next[s], after[s], window_index[p][s]);
          const Terms& t = terms[p][s];
          for (int i = 0; i < t.count; i++) out[p] += t.tap[i] * __builtin_shuffle(window[p][s], following, t.index[i]);
          window[p][s] = following;
        }
      }
      for (int s = 0; s < step; s++) next[s] = after[s];
      if constexpr (phases == 2) interleave(out[0], out[1], &out[0], &out[1]);
      for (int p = 0; p < phases; p++) {
        const int64_t at = block * stride + p * kLanes, n = whole ? kLanes : smaller(kLanes, size - at);
        if (n <= 0) break;
        const vfloat v = finish(out[p], at, n, 0.0f);
        if (past_caches)
          stream(y + at, v);
        else
          store(y + at, v, n);
      }
    };
    const int64_t whole = smaller(size / stride, width / (kLanes * step) - start - 2);
    int64_t block = 0;
    for (; block < whole; block++) turn(block, std::true_type{});
    for (; block * stride < size; block++) turn(block, std::false_type{});
  }

  // Vector `block` of the weighed rows, zeros outside them; where step is 2, of every second element from either.
  template <int step>
  GENCORE_INLINE static void weigh(const From& from, int64_t block, int64_t width, vfloat (&to)[step]) {
    for (int s = 0; s < step; s++) {
      const int64_t at = (block * step + s) * kLanes, n = at < 0 ? 0 : smaller(kLanes, width - at);
      to[s] = vfloat{};
      for (int k = 0; k < from.count && n > 0; k++) to[s] += load(from.row[k] + at, n) * from.tap[k];
    }
    if constexpr (step == 2) separate(to[0], to[1], &to[0], &to[1]);
  }

  template <int step>
  GENCORE_INLINE static void weigh_whole(const From& from, int64_t block, bool two_new, vfloat (&to)[step]) {
    for (int s = 0; s < step; s++) {
      const int64_t at = (block * step + s) * kLanes;
      to[s] = vfloat{};
      for (int k = 0; k < from.count; k++) to[s] += load(from.row[k] + at) * from.tap[k];
      // The processor does not see that one of so many rows comes from memory, and asks for it late.
      if (from.count > 0) __builtin_prefetch(from.row[from.count - 1] + at + kAhead);
      if (from.count > 1 && two_new) __builtin_prefetch(from.row[from.count - 2] + at + kAhead);
    }
    if constexpr (step == 2) separate(to[0], to[1], &to[0], &to[1]);
  }

  const Upfirdn2dArgs& args;
  const Axis &x_axis, &y_axis;
  const Phase* rows;
  const float* column;
  bool streaming, reachable;
  int64_t origin = 0;  // of the first vector of input that the first outputs take from: -1 is one before the image
  Terms terms[2][2];   // [phase][residue]
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
