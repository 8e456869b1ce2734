// Convolution from one to four input channels (the first layer of a discriminator): a tap's stretch of the reduction is
// too short to be worth looking a row up for. The taps of one filter row meet neighbouring pixels, which are one run of
// numbers in channels_last once the padding is filled in; so they become one tap with kernel[2] * channels channels.
// Panels stand in that order already.
#pragma once

#include "cpu/conv_geometry.h"

namespace gencore::GENCORE_ISA {

constexpr int64_t kMostFoldedChannels = 4;

template <class T>
inline bool folds(const ConvShape& shape, bool transposed) {
  return Tile<T>::pack == 1 && !transposed && shape.groups == 1 && shape.in_channels <= kMostFoldedChannels &&
         shape.out_channels > kMostFoldedChannels && shape.kernel[2] > 1 && shape.dilation[2] == 1;
}

// The shape whose pixels are the first of each run; along the last axis they are counted from the padding on.
inline ConvShape folded_shape(const ConvShape& shape) {
  ConvShape folded = shape;
  folded.in_channels = shape.in_channels * shape.kernel[2];
  folded.in_size[2] = (shape.out_size[2] - 1) * shape.stride[2] + 1;
  folded.kernel[2] = 1;
  folded.padding[2] = 0;
  return folded;
}

// Numbers that stage_folded writes, at most; g is the geometry of the folded shape.
inline int64_t most_folded(const Geometry& g, const Boxes& boxes, const ConvShape& shape) {
  return (most_input_pixels(g, boxes) + boxes.step[0] * shape.in_size[0] * shape.in_size[1] * (shape.kernel[2] - 1)) *
         shape.in_channels;
}

// The runs of a box, from an image in either format; what is returned is where the first of the whole image would be.
template <class T>
inline const T* stage_folded(const Geometry& g, const ConvShape& shape, const T* x, bool channels_last, const Box& box,
                             T* staged, PixelStrides& strides) {
  Box part = input_box(g, box);
  part.count[2] += shape.kernel[2] - 1;
  const int64_t channels = shape.in_channels, width = shape.in_size[2], plane = product(shape.in_size);
  // Columns [begin, end) of the image stand behind `before` columns of padding.
  const int64_t first = part.origin[2] - shape.padding[2];
  const int64_t begin = smaller(larger(first, 0), width), end = larger(begin, smaller(first + part.count[2], width));
  const int64_t before = larger(0, smaller(begin - first, part.count[2])),
                after = part.count[2] - before - (end - begin);
  T* to = staged;
  for (int64_t n = 0; n < part.batch_count; n++)
    for (int64_t d = 0; d < part.count[0]; d++)
      for (int64_t h = 0; h < part.count[1]; h++) {
        const int64_t row = ((part.origin[0] + d) * shape.in_size[1] + part.origin[1] + h) * width + begin;
        const T* image = x + (part.batch + n) * plane * channels;
        std::memset(to, 0, before * channels * sizeof(T));
        to += before * channels;
        if (channels_last)
          std::memcpy(to, image + row * channels, (end - begin) * channels * sizeof(T));
        else
          transpose(image + row, plane, to, channels, channels, end - begin);
        to += (end - begin) * channels;
        std::memset(to, 0, after * channels * sizeof(T));
        to += after * channels;
      }
  strides = channels_last_strides(channels, part.count);
  return whole_image(staged, part, strides);
}

}  // namespace gencore::GENCORE_ISA
