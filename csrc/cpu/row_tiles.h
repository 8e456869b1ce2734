// Walks rows whose elements belong to one column each: the pixels of channels_last images.
#pragma once

#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

// A block of rows, and of their columns.
struct Block {
  int64_t begin, end, first, columns;
};

// The loop behind for_each_tile: up to `step` rows at a time, in tiles of up to `wide` vectors.
template <int lanes, int wide, int streams, class Body>
GENCORE_INLINE void for_each_tile_between(const Block& block, int64_t begin, int64_t end, int64_t step, int64_t apart,
                                          const Body& body) {
  for (int64_t first = begin; first < end; first += step) {
    const int64_t last = first + step < end ? first + step : end;
    for_each_column_tile<lanes, wide>(block.columns, [&]<int vectors>(int64_t column, int64_t n) GENCORE_LAMBDA {
      body.template operator()<vectors, streams>(first, last, apart, block.first + column, n);
    });
  }
}

// body<vectors, streams>(first, last, apart, column, n) for the column tiles of all rows: of the rows [first, last), of
// as many that come `apart` behind them, and so on, `streams` times in all.
//
// Wide rows go one by one, all tiles of a row before the next: read as they lie, they come twice as fast as in pieces.
// What belongs to the columns is loaded anew for each, hence for several parts of the rows side by side. Narrow rows,
// one tile of up to `widest` vectors or two, keep it in registers.
template <int lanes, int streams, int widest = 8, class Body>
GENCORE_INLINE void for_each_tile(const Block& block, const Body& body) {
  const bool one_tile = block.columns == widest / 2 * lanes || block.columns == widest * lanes;
  if (one_tile || block.columns <= 2 * lanes) {
    for_each_tile_between<lanes, widest, 1>(block, block.begin, block.end, 16, 0, body);
  } else {
    const int64_t apart = (block.end - block.begin) / streams, rest = block.begin + apart * streams;
    for_each_tile_between<lanes, 4, streams>(block, block.begin, block.begin + apart, 1, apart, body);
    for_each_tile_between<lanes, 4, 1>(block, rest, block.end, 1, 0, body);
  }
}

template <int count, class V>
GENCORE_INLINE V pairwise_sum(const V (&v)[count]) {
  if constexpr (count == 1) return v[0];
  if constexpr (count == 2) return v[0] + v[1];
  if constexpr (count == 4) return (v[0] + v[1]) + (v[2] + v[3]);
}

// One number a column, for the vectors of a tile.
template <int vectors, class C, class V>
GENCORE_INLINE void load_tile(const C* from, int64_t n, V (&to)[vectors]) {
  for (int j = 0; j < vectors; j++) to[j] = load(from + j * Vector<C>::lanes, n);
}
template <int vectors, class C, class V>
GENCORE_INLINE void add_tile(C* to, int64_t n, const V (&tile)[vectors]) {
  for (int j = 0; j < vectors; j++) {
    C* at = to + j * Vector<C>::lanes;
    store(at, load(at, n) + tile[j], n);
  }
}

}  // namespace gencore::GENCORE_ISA
