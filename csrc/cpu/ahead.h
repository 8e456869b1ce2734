// Memory that will be needed soon, asked for a few lines at a time while threads multiply, for the products leave
// memory idle. It comes to the caches that threads share, so it does not matter which of them needs it.
#pragma once

#include "cpu/conv_geometry.h"

namespace gencore::GENCORE_ISA {

namespace {

class Ahead {
 public:
  Ahead() = default;

  // The pixels of a box of float32 images of one plane, in as many parts as there will be calls of ask().
  Ahead(const void* images, bool channels_last, int64_t channels, const int64_t (&size)[3], const Box& box,
        int64_t calls) {
    constexpr int64_t bytes = sizeof(float);
    const int64_t pixel = channels_last ? channels * bytes : bytes, line = size[2] * pixel, plane = size[1] * line;
    image_step_ = channels_last ? plane : channels * plane;
    first_ = static_cast<const char*>(images) + box.batch * image_step_ + box.origin[1] * line + box.origin[2] * pixel;
    // Rows of pixels, or of a channel all rows of the box with what lies between them.
    rows_ = channels_last ? box.count[1] : channels;
    row_step_ = channels_last ? line : plane;
    lines_ = ceil_div(channels_last ? box.count[2] * pixel : (box.count[1] - 1) * line + box.count[2] * pixel, kLine);
    all_ = box.pixels() > 0 ? box.batch_count * rows_ * lines_ : 0;
    calls_ = calls;
  }

  // Inline: a compiler takes a call of a function that does nothing but this for one that does nothing.
  GENCORE_INLINE void ask(int64_t call) const {
    if (all_ == 0) return;
    const int64_t last = all_ * (call + 1) / calls_;
    int64_t i = all_ * call / calls_, row = i / lines_, line = i % lines_;
    for (; i < last; row++, line = 0) {
      const char* at = first_ + row / rows_ * image_step_ + row % rows_ * row_step_;
      for (; line < lines_ && i < last; line++, i++) __builtin_prefetch(at + line * kLine, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* first_ = nullptr;
  int64_t image_step_ = 0, rows_ = 0, row_step_ = 0, lines_ = 0, all_ = 0, calls_ = 1;
};

}  // namespace

}  // namespace gencore::GENCORE_ISA
