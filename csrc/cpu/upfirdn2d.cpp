#include "cpu/upfirdn2d.h"

#include "cpu/fir.h"
#include "cpu/fir_lines.h"
#include "cpu/fir_pixels.h"
#include "cpu/fir_planes.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"
#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

namespace {

// Outputs at least this large are written past the caches.
constexpr int64_t kStreamBytes = 16 << 20;
// Sums of input rows that are made before the first of them is filtered: a load that straddles two stores waits until
// both have left the store buffer, and by then they have.
constexpr int64_t kBlock = 8;

template <class T>
struct Fir {
  using C = compute_t<T>;
  using V = vector_t<C>;
  static constexpr int lanes = Vector<C>::lanes;

  const Upfirdn2dArgs& args;
  Axis x_axis, y_axis;
  int64_t channels;
  bool separable = false, planar, streaming;
  C *column_taps, *row_taps;  // [filter_height], [filter_width]; not separable: row_taps [filter_height][filter_width]
  Phase* phases;              // of the x axis
  Phase* rows;                // of the y axis, one for each output row
  int64_t margin = 0, length = 0;   // zeros before a row, a multiple of the step; pixels of a row with its margins
  int64_t sources, source_size;     // input rows, or their sum, kept with margins
  int64_t used_phases, most_terms;  // phases that have an output; terms of one of these

  struct Term {
    C tap;
    const C* row;
  };
  struct Work {  // one thread's arrays
    C* sources;
    int64_t* source_row;  // which input row a source holds, image included; -1: none
    C* line;
    Term* terms;      // [phase][most_terms]
    int64_t* counts;  // [phase]
  };
  explicit Fir(const Upfirdn2dArgs& args)
      : args(args),
        x_axis(args.up_x, args.down_x, args.pad_x, args.filter_width),
        y_axis(args.up_y, args.down_y, args.pad_y, args.filter_height),
        channels(args.channels) {
    used_phases = smaller(x_axis.phases, args.out_width);
    // Rows of pixels without a step or phases are filtered like rows of numbers, whatever the channels.
    planar = channels == 1 || (x_axis.phases == 1 && x_axis.step == 1 && !args.epilogue.wanted);
    streaming =
        args.images * args.out_height * args.out_width * channels * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
        reinterpret_cast<uintptr_t>(args.y) % 64 == 0 && (planar ? args.out_width * channels : channels) % lanes == 0;
  }

  void run() {
    Arena arena;
    for (int round = 0; round < 2; round++) {
      column_taps = arena.take<C>(args.filter_height);
      row_taps = arena.take<C>(args.filter_height * args.filter_width);
      phases = arena.take<Phase>(x_axis.phases);
      rows = arena.take<Phase>(args.out_height);
      if (round == 0) arena = {static_cast<char*>(scratch(Scratch::shared, arena.used)), 0};
    }
    separable = factorize(args, column_taps, row_taps);
    if (!separable)
      for (int64_t i = 0; i < args.filter_height * args.filter_width; i++) row_taps[i] = static_cast<C>(args.taps[i]);
    for (int64_t o = 0; o < args.out_height; o++) rows[o] = y_axis.phase(o);
    if constexpr (lanes > 1) {
      if (separable) {
        const FirLines<T> lines(args, column_taps, row_taps, streaming);
        if (lines.fits()) return lines.run();
        const FirPlanes<T> planes(args, x_axis, y_axis, rows, column_taps, row_taps, streaming);
        if (planes.fits()) return planes.run();
      }
    }
    if (separable) {
      const FirPixels<T> pixels(args, column_taps, row_taps, streaming);
      if (pixels.fits()) return pixels.run();
    }
    lay_out_rows();
    const int64_t row_elements = args.out_width * channels;
    parallel_for(0, args.images * args.out_height, kGrain / row_elements + 1, [&](int64_t begin, int64_t end) {
      Arena own;
      take(own);
      own = {static_cast<char*>(scratch(Scratch::worker, own.used)), 0};
      Work w = take(own);
      std::memset(w.sources, 0, sources * source_size * sizeof(C));
      for (int64_t i = 0; i < sources; i++) w.source_row[i] = -1;
      for (int64_t r = 0; r < x_axis.phases; r++) w.counts[r] = 0;
      if (separable) add_terms(row_taps, w.sources, w);
      for (int64_t task = begin; task < end;) {
        const int64_t image = task / args.out_height, o = task % args.out_height;
        const int64_t count = smaller(smaller(kBlock, end - task), args.out_height - o);
        if (separable) {
          for (int64_t i = 0; i < count; i++) sum_rows(image, o + i, w.sources + i * source_size, w);
          for (int64_t i = 0; i < count; i++) filter_row(image, o + i, i * source_size, w);
        } else {
          for (int64_t i = 0; i < count; i++) output_row(image, o + i, w);
        }
        task += count;
      }
      if (streaming) stream_fence();
    });
  }

  void lay_out_rows() {
    int64_t lowest = 0, highest = args.in_width - 1;
    most_terms = 1;
    for (int64_t r = 0; r < used_phases; r++) {
      phases[r] = x_axis.phase(r);
      const int64_t last = (args.out_width - 1 - r) / x_axis.phases;  // the last q of this phase
      if (phases[r].count == 0) continue;
      lowest = smaller(lowest, phases[r].base);
      highest = larger(highest, phases[r].base + phases[r].count - 1 + last * x_axis.step);
      most_terms = larger(most_terms, phases[r].count);
    }
    margin = ceil_div(-lowest, x_axis.step) * x_axis.step;
    // Vectors read past the end of what they need, by four of them at most.
    length = ceil_div(margin + highest + 1, x_axis.step) * x_axis.step;
    source_size = length * channels + 5 * lanes * x_axis.step;
    sources = separable ? kBlock : ceil_div(args.filter_height, y_axis.up);
    if (!separable) most_terms *= sources;
  }

  Work take(Arena& arena) const {
    Work w{};
    w.sources = arena.take<C>(sources * source_size);
    w.source_row = arena.take<int64_t>(sources);
    w.line = arena.take<C>(larger(args.in_width, args.out_width) * channels + 4 * lanes);
    w.terms = arena.take<Term>(x_axis.phases * most_terms);
    w.counts = arena.take<int64_t>(x_axis.phases);
    return w;
  }

  // An output row of a filter that is no product: its input rows are kept, and all their taps are terms.
  void output_row(int64_t image, int64_t o, Work& w) const {
    const Phase& phase = rows[o];
    const int64_t begin = larger(0, -phase.base), end = smaller(phase.count, args.in_height - phase.base);
    const T* x = static_cast<const T*>(args.x) + image * args.in_height * args.in_width * channels;
    for (int64_t r = 0; r < x_axis.phases; r++) w.counts[r] = 0;
    for (int64_t j = begin; j < end; j++) {
      const int64_t row = phase.base + j, slot = row % sources;
      C* source = w.sources + slot * source_size;
      if (w.source_row[slot] != image * args.in_height + row) {
        w.source_row[slot] = image * args.in_height + row;
        const C one = 1;
        const T* from = x + row * args.in_width * channels;
        weigh_rows<1>(&from, &one, row_length(), false, target(source, w));
        spread(source, w);
      }
      add_terms(row_taps + (phase.first + j * y_axis.up) * args.filter_width, source, w);
    }
    filter_row(image, o, 0, w);
  }

  int64_t row_length() const { return args.in_width * channels; }

  // --- input rows, and their sums --------------------------------------------------------------------------------

  // Where a row without margins goes: straight into the source, or to be spread over the step's residues.
  C* target(C* source, Work& w) const { return x_axis.step == 1 || !planar ? source + margin * channels : w.line; }

  void spread(C* source, Work& w) const {
    if (x_axis.step == 1 || !planar) return;
    const int64_t step = x_axis.step, part = source_size / step;
    for (int64_t i = 0; i < args.in_width; i++) source[i % step * part + (margin + i) / step] = w.line[i];
  }

  void sum_rows(int64_t image, int64_t o, C* source, Work& w) const {
    const Phase& phase = rows[o];
    const int64_t begin = larger(0, -phase.base), end = smaller(phase.count, args.in_height - phase.base);
    const T* x = static_cast<const T*>(args.x) + image * args.in_height * row_length();
    C* to = target(source, w);
    if (begin >= end) {
      std::memset(to, 0, row_length() * sizeof(C));
    } else {
      const T* row[4];
      C tap[4];
      for (int64_t j = begin; j < end; j += 4) {
        const int count = static_cast<int>(smaller(4, end - j));
        for (int k = 0; k < count; k++) {
          row[k] = x + (phase.base + j + k) * row_length();
          tap[k] = column_taps[phase.first + (j + k) * y_axis.up];
        }
        switch (count) {
          case 1:
            weigh_rows<1>(row, tap, row_length(), j > begin, to);
            break;
          case 2:
            weigh_rows<2>(row, tap, row_length(), j > begin, to);
            break;
          case 3:
            weigh_rows<3>(row, tap, row_length(), j > begin, to);
            break;
          default:
            weigh_rows<4>(row, tap, row_length(), j > begin, to);
        }
      }
    }
    spread(source, w);
  }

  // The processor does not see that one of so many rows comes from memory, and asks for it late.
  template <int count>
  GENCORE_INLINE void weigh_rows(const T* const* row, const C* tap, int64_t size, bool add, C* to) const {
    const T *newest = row[count - 1] + kAhead,
            *second = row[y_axis.down > 1 && count > 1 ? count - 2 : count - 1] + kAhead;
    for_each_vector<lanes>(size, [&](int64_t i, int64_t n, int) GENCORE_LAMBDA {
      __builtin_prefetch(newest + i);
      __builtin_prefetch(second + i);
      V sum = add ? load(to + i, n) : V{};
      for (int k = 0; k < count; k++) sum += load(row[k] + i, n) * tap[k];
      store(to + i, sum, n);
    });
  }

  // --- along the row ---------------------------------------------------------------------------------------------

  void add_terms(const C* taps, const C* source, Work& w) const {
    const int64_t step = x_axis.step, part = source_size / step;
    for (int64_t r = 0; r < used_phases; r++)
      for (int64_t j = 0; j < phases[r].count; j++) {
        const int64_t at = margin + phases[r].base + j;
        const C* row = planar ? source + at % step * part + at / step * channels : source + at * channels;
        w.terms[r * most_terms + w.counts[r]++] = {taps[phases[r].first + j * x_axis.up], row};
      }
  }

  template <int vectors>
  GENCORE_INLINE void add_up(const Term* terms, int64_t count, int64_t offset, V (&sum)[vectors]) const {
    for (int i = 0; i < vectors; i++) sum[i] = V{};
    for (int64_t t = 0; t < count; t++) {
      const V tap = broadcast<V>(terms[t].tap);
      for (int i = 0; i < vectors; i++) sum[i] += tap * load(terms[t].row + offset + i * lanes);
    }
  }

  GENCORE_INLINE void put(T* y, V v, int64_t n) const {
    if (streaming)
      stream(y, v);
    else
      store(y, v, n);
  }

  // `from`: where the sums lie behind those that the terms point to.
  void filter_row(int64_t image, int64_t o, int64_t from, Work& w) const {
    const Finish<C> finish(args, planar, image, o);
    T* y = static_cast<T*>(args.y) + (image * args.out_height + o) * args.out_width * channels;
    if (!planar)
      filter_pixels(finish, y, from, w);
    else if (x_axis.phases == 1)
      filter_one_phase(finish, y, from, w);
    else
      filter_phases(finish, y, from, w);
  }

  void filter_one_phase(const Finish<C>& finish, T* y, int64_t from, const Work& w) const {
    const int64_t size = args.out_width * channels, count = w.counts[0];
    int64_t i = 0;
    for (; i + 4 * lanes <= size; i += 4 * lanes) {
      V sum[4];
      add_up(w.terms, count, from + i, sum);
      for (int j = 0; j < 4; j++) put(y + i + j * lanes, finish(sum[j], i + j * lanes, lanes, C{0}), lanes);
    }
    for (; i < size; i += lanes) {
      V sum[1];
      add_up(w.terms, count, from + i, sum);
      const int64_t n = smaller(lanes, size - i);
      put(y + i, finish(sum[0], i, n, C{0}), n);
    }
  }

  void filter_phases(const Finish<C>& finish, T* y, int64_t from, const Work& w) const {
    const int64_t size = args.out_width;
    for (int64_t o = 0; o < size; o++) {
      const int64_t r = o % x_axis.phases, q = o / x_axis.phases;
      C sum = 0;
      for (int64_t t = 0; t < w.counts[r]; t++) {
        const Term& term = w.terms[r * most_terms + t];
        sum += term.tap * term.row[from + q];
      }
      w.line[o] = sum;
    }
    for (int64_t i = 0; i < size; i += lanes) {
      const int64_t n = smaller(lanes, size - i);
      put(y + i, finish(load(w.line + i, n), i, n, C{0}), n);
    }
  }

  void filter_pixels(const Finish<C>& finish, T* y, int64_t from, const Work& w) const {
    for (int64_t o = 0; o < args.out_width; o++, y += channels) {
      const int64_t r = o % x_axis.phases, offset = from + o / x_axis.phases * x_axis.step * channels;
      const Term* terms = w.terms + r * most_terms;
      const C noise = finish.noise ? finish.noise[o] : C{0};
      int64_t c = 0;
      for (; c + 4 * lanes <= channels; c += 4 * lanes) {
        V sum[4];
        add_up(terms, w.counts[r], offset + c, sum);
        for (int j = 0; j < 4; j++) put(y + c + j * lanes, finish(sum[j], c + j * lanes, lanes, noise), lanes);
      }
      for (; c < channels; c += lanes) {
        V sum[1];
        add_up(terms, w.counts[r], offset + c, sum);
        const int64_t n = smaller(lanes, channels - c);
        put(y + c, finish(sum[0], c, n, noise), n);
      }
    }
  }
};

}  // namespace

void upfirdn2d(const Upfirdn2dArgs& args) { GENCORE_DISPATCH_DTYPE(args.dtype, Fir<scalar_t>(args).run()) }

}  // namespace gencore::GENCORE_ISA
