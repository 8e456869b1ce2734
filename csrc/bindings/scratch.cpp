#include "gencore/scratch.h"

#include <cstdlib>
#include <new>

namespace gencore {

namespace {

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

thread_local Buffer buffers[2];

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = bytes;
  }
  return buffer.data;
}

}  // namespace gencore
