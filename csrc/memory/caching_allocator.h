// A caching allocator for large, short-lived buffers of repeating sizes: the tensors of a training step.
//
// What it saves is page faults. Memory fresh from the kernel is zeroed page by page at its first touch, which costs
// more than most element-wise kernels that then run on it; a block that was freed a moment ago is mapped, and often in
// cache.
//
//   up to 960 bytes   malloc, whose thread caches cannot be beaten, with a 64-byte offset for alignment
//   up to 1 MiB       size classes (eight steps to a power of two: at most 1/8 of a block is waste), blocks from malloc
//   above             the same size classes, blocks from mmap; from 2 MiB on they are aligned for, and ask for, huge
//   pages
//
// A freed block goes on top of its class's list and the next request of that class takes it (last in, first out). Each
// class has a lock of its own. Cached bytes are bounded: beyond the limit the blocks that lay longest are given back.
//
// This file knows nothing of torch; csrc/bindings/memory.cpp makes a c10::Allocator of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace gencore::memory {

inline constexpr size_t kAlignment = 64;
inline constexpr size_t kSmallBytes = 960;
inline constexpr size_t kMapBytes = size_t{1} << 20;
inline constexpr size_t kHugePageBytes = size_t{2} << 20;
inline constexpr size_t kMaxBytes = size_t{1} << 47;

// Bytes and counts since the process began; the blocks of at most kSmallBytes are not in them.
struct Stats {
  int64_t allocated_bytes;       // asked for by buffers that are alive
  int64_t peak_allocated_bytes;  // the most of it since the start or reset_peaks()
  int64_t reserved_bytes;        // held from the system: live blocks, their rounding, and the cache
  int64_t peak_reserved_bytes;
  int64_t cached_bytes;  // the part of reserved_bytes that waits for reuse
  int64_t cached_blocks;
  int64_t hits;                // requests served from the cache
  int64_t misses;              // requests that went to the system
  int64_t system_allocations;  // blocks taken from the system
  int64_t system_frees;        // blocks given back to it
  int64_t evictions;           // those given back because the limit was exceeded
};

struct Header;

class CachingAllocator {
 public:
  // The one instance. It is never destroyed: tensors may outlive every static destructor.
  static CachingAllocator& instance();

  // 64-byte aligned memory, nullptr where bytes is 0 or the system has none left after the cache was emptied.
  void* allocate(size_t bytes);
  // Takes what allocate() returned (nullptr too), from any thread, at any time, caching or not.
  void deallocate(void* data);

  // Turning it off empties the cache; blocks freed later go straight back to the system.
  void set_caching(bool caching);
  bool caching() const { return caching_.load(std::memory_order_relaxed); }
  void set_limit(size_t bytes);
  size_t limit() const { return limit_.load(std::memory_order_relaxed); }
  // Fills every buffer with 0xFF before it is handed out: NaN in each floating-point type.
  void set_poison(bool poison) { poison_.store(poison, std::memory_order_relaxed); }
  bool poison() const { return poison_.load(std::memory_order_relaxed); }

  // Gives every cached block back; returns how many bytes that were.
  size_t empty_cache();
  Stats stats();
  void reset_peaks();

 private:
  // Blocks of one size that wait for reuse: newest at the head, oldest at the tail.
  struct alignas(128) SizeClass {
    std::mutex mutex;
    Header* head = nullptr;
    Header* tail = nullptr;
    int64_t hits = 0, misses = 0, blocks = 0;
    std::atomic<uint64_t> oldest{UINT64_MAX};  // the tail's time stamp, readable without the lock
  };
  static constexpr int kFirstExponent = 9;
  static constexpr int kClasses = (47 - kFirstExponent) * 8;

  CachingAllocator();
  static void* allocate_small(size_t bytes);
  Header* pop(SizeClass& size_class);
  bool push(Header* block);
  Header* pop_oldest(SizeClass& size_class);
  Header* new_block(size_t capacity, uint32_t size_class);
  void release(Header* block);
  size_t trim(size_t target, bool evicting);
  void lock_all();
  void unlock_all();

  SizeClass classes_[kClasses];
  std::atomic<bool> caching_{false}, poison_{false};
  std::atomic<size_t> limit_{0};
  std::atomic<uint64_t> clock_{0}, colour_{0};
  std::atomic<int64_t> allocated_{0}, peak_allocated_{0}, reserved_{0}, peak_reserved_{0}, cached_{0};
  std::atomic<int64_t> system_allocations_{0}, system_frees_{0}, evictions_{0};
};

}  // namespace gencore::memory
