#include "memory/caching_allocator.h"

#include <pthread.h>
#include <sys/mman.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gencore::memory {

// Stands in the 64 bytes before the data. Small blocks use its last 16 bytes only.
struct alignas(kAlignment) Header {
  Header* newer;
  Header* older;
  uint64_t freed_at;
  size_t requested;
  size_t capacity;  // usable bytes: those of the size class
  size_t mapped;    // length of the mapping at base, 0 where base came from malloc
  void* base;
  uint32_t size_class;
  uint32_t tag;
};
static_assert(sizeof(Header) == kAlignment);

namespace {

constexpr uint32_t kSmallTag = 0x6e65675au, kLiveTag = 0x6e656741u, kCachedTag = 0x6e656743u;
constexpr size_t kPageBytes = 4096;

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

Header* header_of(void* data) { return static_cast<Header*>(data) - 1; }
void* data_of(Header* block) { return block + 1; }

// What a block holds of the system's memory.
int64_t footprint(const Header* block) {
  return static_cast<int64_t>(block->mapped ? block->mapped : block->capacity + 2 * kAlignment);
}

void raise_to(std::atomic<int64_t>& peak, int64_t value) {
  int64_t seen = peak.load(std::memory_order_relaxed);
  while (seen < value && !peak.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// An anonymous mapping of `bytes`, on a huge-page boundary where it is large enough to hold huge pages.
void* map(size_t bytes) {
  const bool huge = bytes >= kHugePageBytes;
  const size_t length = huge ? bytes + kHugePageBytes - kPageBytes : bytes;
  void* address = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  if (!huge) return address;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  const uintptr_t aligned = round_up(begin, kHugePageBytes);
  const size_t before = aligned - begin, after = length - before - bytes;
  if (before) munmap(address, before);
  if (after) munmap(reinterpret_cast<void*>(aligned + bytes), after);
  address = reinterpret_cast<void*>(aligned);
#ifdef MADV_HUGEPAGE
  madvise(address, bytes, MADV_HUGEPAGE);  // a wish: where the kernel refuses, ordinary pages serve
#endif
  return address;
}

[[noreturn]] void die(const char* problem, void* data) {
  std::fprintf(stderr, "gencore.memory: %s (block at %p)\n", problem, data);
  std::abort();
}

}  // namespace

CachingAllocator& CachingAllocator::instance() {
  static CachingAllocator* const allocator = new CachingAllocator;
  return *allocator;
}

CachingAllocator::CachingAllocator() {
  // A child process must not inherit a lock that a thread of the parent held. It drops the cache as well: its
  // copy-on-write pages would cost the child a copy each, and the parent's next write to them too.
  pthread_atfork([] { instance().lock_all(); }, [] { instance().unlock_all(); },
                 [] {
                   instance().unlock_all();
                   instance().empty_cache();
                 });
}

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes == 0 || bytes > kMaxBytes) return nullptr;
  void* data;
  if (bytes <= kSmallBytes) {
    data = allocate_small(bytes);
    if (!data && empty_cache()) data = allocate_small(bytes);
    if (!data) return nullptr;
  } else {
    // Eight classes to a power of two: the four leading bits of bytes - 1 name the class.
    const int exponent = 63 - std::countl_zero(bytes - 1), shift = exponent - 3;
    const size_t leading = (bytes - 1) >> shift;
    const uint32_t index = static_cast<uint32_t>((exponent - kFirstExponent) * 8 + static_cast<int>(leading & 7));
    Header* block = pop(classes_[index]);
    if (!block) {
      const size_t capacity = (leading + 1) << shift;
      block = new_block(capacity, index);
      if (!block && empty_cache()) block = new_block(capacity, index);
      if (!block) return nullptr;
    }
    block->requested = bytes;
    block->tag = kLiveTag;
    const int64_t requested = static_cast<int64_t>(bytes);
    raise_to(peak_allocated_, allocated_.fetch_add(requested, std::memory_order_relaxed) + requested);
    data = data_of(block);
  }
  if (poison()) std::memset(data, 0xff, bytes);
  return data;
}

void CachingAllocator::deallocate(void* data) {
  if (!data) return;
  Header* block = header_of(data);
  if (block->tag == kSmallTag) {
    std::free(block->base);
    return;
  }
  if (block->tag == kCachedTag) die("a buffer was freed twice", data);
  if (block->tag != kLiveTag) die("a buffer's header was overwritten, or the buffer is not of this allocator", data);
  allocated_.fetch_sub(static_cast<int64_t>(block->requested), std::memory_order_relaxed);
  if (!push(block)) {
    release(block);
    return;
  }
  if (cached_.load(std::memory_order_relaxed) > static_cast<int64_t>(limit())) trim(limit(), true);
}

// malloc aligns to 16 bytes: 64 more leave room for an aligned start with 16 bytes of header before it.
void* CachingAllocator::allocate_small(size_t bytes) {
  void* base = std::malloc(bytes + kAlignment);
  if (!base) return nullptr;
  void* data = reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(base) + 16, kAlignment));
  header_of(data)->base = base;
  header_of(data)->tag = kSmallTag;
  return data;
}

Header* CachingAllocator::pop(SizeClass& size_class) {
  std::lock_guard lock(size_class.mutex);
  Header* block = size_class.head;
  if (!block) {
    ++size_class.misses;
    return nullptr;
  }
  size_class.head = block->older;
  if (block->older) {
    block->older->newer = nullptr;
  } else {
    size_class.tail = nullptr;
    size_class.oldest.store(UINT64_MAX, std::memory_order_relaxed);
  }
  ++size_class.hits;
  --size_class.blocks;
  cached_.fetch_sub(footprint(block), std::memory_order_relaxed);
  return block;
}

// False where the block is not to be cached.
bool CachingAllocator::push(Header* block) {
  if (static_cast<size_t>(footprint(block)) > limit()) return false;
  SizeClass& size_class = classes_[block->size_class];
  std::lock_guard lock(size_class.mutex);
  // Asked under the lock: set_caching(false) empties each class after it cleared the flag, so none is missed.
  if (!caching()) return false;
  block->tag = kCachedTag;
  block->freed_at = clock_.fetch_add(1, std::memory_order_relaxed);
  block->newer = nullptr;
  block->older = size_class.head;
  if (size_class.head) {
    size_class.head->newer = block;
  } else {
    size_class.tail = block;
    size_class.oldest.store(block->freed_at, std::memory_order_relaxed);
  }
  size_class.head = block;
  ++size_class.blocks;
  cached_.fetch_add(footprint(block), std::memory_order_relaxed);
  return true;
}

Header* CachingAllocator::pop_oldest(SizeClass& size_class) {
  std::lock_guard lock(size_class.mutex);
  Header* block = size_class.tail;
  if (!block) return nullptr;
  size_class.tail = block->newer;
  if (block->newer) {
    block->newer->older = nullptr;
    size_class.oldest.store(block->newer->freed_at, std::memory_order_relaxed);
  } else {
    size_class.head = nullptr;
    size_class.oldest.store(UINT64_MAX, std::memory_order_relaxed);
  }
  --size_class.blocks;
  cached_.fetch_sub(footprint(block), std::memory_order_relaxed);
  return block;
}

Header* CachingAllocator::new_block(size_t capacity, uint32_t size_class) {
  void* base;
  uintptr_t data;
  size_t mapped = 0;
  if (capacity < kMapBytes) {
    base = std::malloc(capacity + 2 * kAlignment);
    data = round_up(reinterpret_cast<uintptr_t>(base), kAlignment) + kAlignment;
  } else {
    // Data begin at differing lines of the first page: buffers that a kernel walks together would otherwise meet in the
    // same sets of the first-level cache.
    mapped = capacity + kPageBytes;
    base = map(mapped);
    data = reinterpret_cast<uintptr_t>(base) + kAlignment * (1 + colour_.fetch_add(5, std::memory_order_relaxed) % 63);
  }
  if (!base) return nullptr;
  Header* block = header_of(reinterpret_cast<void*>(data));
  block->capacity = capacity;
  block->mapped = mapped;
  block->base = base;
  block->size_class = size_class;
  const int64_t size = footprint(block);
  raise_to(peak_reserved_, reserved_.fetch_add(size, std::memory_order_relaxed) + size);
  system_allocations_.fetch_add(1, std::memory_order_relaxed);
  return block;
}

void CachingAllocator::release(Header* block) {
  reserved_.fetch_sub(footprint(block), std::memory_order_relaxed);
  system_frees_.fetch_add(1, std::memory_order_relaxed);
  if (block->mapped) {
    munmap(block->base, block->mapped);
  } else {
    std::free(block->base);
  }
}

// Gives the blocks that lay longest back until at most `target` bytes are cached; returns the bytes given back.
size_t CachingAllocator::trim(size_t target, bool evicting) {
  size_t freed = 0;
  while (cached_.load(std::memory_order_relaxed) > static_cast<int64_t>(target)) {
    SizeClass* oldest = nullptr;
    uint64_t stamp = UINT64_MAX;
    for (SizeClass& size_class : classes_) {
      const uint64_t candidate = size_class.oldest.load(std::memory_order_relaxed);
      if (candidate < stamp) {
        stamp = candidate;
        oldest = &size_class;
      }
    }
    if (!oldest) break;
    Header* block = pop_oldest(*oldest);
    if (!block) continue;  // another thread took it in the meantime
    freed += static_cast<size_t>(footprint(block));
    if (evicting) evictions_.fetch_add(1, std::memory_order_relaxed);
    release(block);
  }
  return freed;
}

void CachingAllocator::set_caching(bool caching) {
  caching_.store(caching);
  if (!caching) empty_cache();
}

void CachingAllocator::set_limit(size_t bytes) {
  limit_.store(bytes < kMaxBytes ? bytes : kMaxBytes);
  trim(limit(), true);
}

size_t CachingAllocator::empty_cache() {
  size_t freed = 0;
  for (SizeClass& size_class : classes_) {
    while (Header* block = pop_oldest(size_class)) {
      freed += static_cast<size_t>(footprint(block));
      release(block);
    }
  }
  return freed;
}

Stats CachingAllocator::stats() {
  Stats stats{};
  for (SizeClass& size_class : classes_) {
    std::lock_guard lock(size_class.mutex);
    stats.hits += size_class.hits;
    stats.misses += size_class.misses;
    stats.cached_blocks += size_class.blocks;
  }
  stats.allocated_bytes = allocated_;
  stats.peak_allocated_bytes = peak_allocated_;
  stats.reserved_bytes = reserved_;
  stats.peak_reserved_bytes = peak_reserved_;
  stats.cached_bytes = cached_;
  stats.system_allocations = system_allocations_;
  stats.system_frees = system_frees_;
  stats.evictions = evictions_;
  return stats;
}

void CachingAllocator::reset_peaks() {
  peak_allocated_.store(allocated_);
  peak_reserved_.store(reserved_);
}

void CachingAllocator::lock_all() {
  for (SizeClass& size_class : classes_) size_class.mutex.lock();
}

void CachingAllocator::unlock_all() {
  for (SizeClass& size_class : classes_) size_class.mutex.unlock();
}

}  // namespace gencore::memory
