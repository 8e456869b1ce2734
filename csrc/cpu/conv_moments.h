// Mean and variance of every output channel, gathered while the outputs are still in registers: a batch norm that
// follows then reads them once from memory instead of twice.
//
// Each tile takes the mean of its few pixels and the squared deviations from it. Tiles are merged in the order in which
// they are worked on, and in float64 from one phase of a box on: the bits depend on the shape alone.
#pragma once

#include "cpu/conv_geometry.h"
#include "cpu/moments.h"

namespace gencore::GENCORE_ISA {

// Of the pixels of a list that are done, for one block of channels. `mean` is counted from `shift`, the first tile's:
// it then rounds as the values spread, however far they lie from zero.
template <class T>
struct Moments {
  using Sum = typename Tile<T>::Sum;
  static constexpr int width = kMaxVectors * Tile<T>::lanes;
  int64_t count;
  Sum shift[width], mean[width], m2[width];
};

// Takes in the tile v of MR pixels by NV vectors of channels.
template <class T, int MR, int NV>
GENCORE_INLINE void add_moments(const typename Tile<T>::V (&v)[MR][NV], Moments<T>& moments) {
  using Sum = typename Tile<T>::Sum;
  using V = typename Tile<T>::V;
  const Sum before = static_cast<Sum>(moments.count), share = MR / (before + MR), weight = before * share;
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) {
    const int64_t column = j * Tile<T>::lanes;
    V sum{};
#pragma GCC unroll 12
    for (int i = 1; i < MR; i++) sum += v[i][j] - v[0][j];
    const V mean = sum * (Sum{1} / MR);
    V m2 = mean * mean;
#pragma GCC unroll 12
    for (int i = 1; i < MR; i++) {
      const V d = (v[i][j] - v[0][j]) - mean;
      m2 = multiply_add(d, d, m2);
    }
    if (moments.count == 0) {
      store_vector(moments.shift + column, v[0][j] + mean);
      store_vector(moments.mean + column, V{});
      store_vector(moments.m2 + column, V{});
    }
    const V old = load_vector<V>(moments.mean + column);
    const V delta = ((v[0][j] - load_vector<V>(moments.shift + column)) + mean) - old;
    store_vector(moments.mean + column, old + delta * share);
    store_vector(moments.m2 + column, load_vector<V>(moments.m2 + column) + (m2 + delta * delta * weight));
  }
  moments.count += MR;
}

// Takes in all of rows[pixels][columns], for the few columns of conv_few.h.
inline void add_moments(const float* rows, int64_t pixels, int columns, Moments<float>& moments) {
  for (int c = 0; c < columns; c++) {
    double mean = 0, m2 = 0;
    for (int64_t i = 0; i < pixels; i++) mean += rows[i * columns + c] - static_cast<double>(rows[c]);
    mean /= static_cast<double>(pixels);
    for (int64_t i = 0; i < pixels; i++) {
      const double d = rows[i * columns + c] - static_cast<double>(rows[c]) - mean;
      m2 += d * d;
    }
    moments.shift[c] = rows[c];
    moments.mean[c] = static_cast<float>(mean);
    moments.m2[c] = static_cast<float>(m2);
  }
  moments.count = pixels;
}

// What each box leaves for the final merge: [box][mean, m2][channels].
struct BoxMoments {
  double* partial;
  int64_t channels;

  static int64_t size(int64_t boxes, int64_t channels) { return 2 * boxes * channels; }

  // Takes in `width` channels of a box, of which `before` pixels are in already.
  template <class T>
  void add(int64_t box, int64_t channel, int width, int64_t before, const Moments<T>& moments) const {
    double* means = partial + 2 * box * channels + channel;
    double* m2s = means + channels;
    for (int i = 0; i < width; i++) {
      const double mean = static_cast<double>(moments.shift[i]) + static_cast<double>(moments.mean[i]);
      double count = static_cast<double>(before);
      if (before == 0) means[i] = m2s[i] = 0;
      merge(count, means[i], m2s[i], static_cast<double>(moments.count), mean, static_cast<double>(moments.m2[i]));
    }
  }

  // Mean and biased variance of each channel; pixels(box) says how many a box has.
  template <class Sum, class Pixels>
  void finish(int64_t boxes, const Pixels& pixels, Sum* mean_out, Sum* var_out) const {
    for_each_channel_block(channels, boxes, [&](int64_t first, int64_t width) {
      double mean[kMergeBlock] = {}, m2[kMergeBlock] = {}, count = 0;
      for (int64_t box = 0; box < boxes; box++) {
        const double* means = partial + 2 * box * channels + first;
        const double added = static_cast<double>(pixels(box));
        double total = count;
        for (int64_t i = 0; i < width; i++) {
          total = count;
          merge(total, mean[i], m2[i], added, means[i], means[channels + i]);
        }
        count = total;
      }
      for (int64_t i = 0; i < width; i++) {
        mean_out[first + i] = static_cast<Sum>(mean[i]);
        var_out[first + i] = static_cast<Sum>(m2[i] / count);
      }
    });
  }
};

}  // namespace gencore::GENCORE_ISA
