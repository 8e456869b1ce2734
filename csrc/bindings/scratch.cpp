#include "gencore/scratch.h"

#include <sys/mman.h>

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

constexpr size_t kLine = 64, kHugePage = 2 << 20;

// Large ones on huge pages, where the system grants them: kernels walk tens of streams in them at once, more than the
// first-level table of ordinary pages holds, and ordinary pages lie in the caches as chance has it.
void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage / 2 ? kHugePage : kLine;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = nullptr;
    buffer.data = allocate(bytes);
    buffer.size = bytes;
  }
  return buffer.data;
}

}  // namespace gencore
