// Hammers the caching allocator without torch, so that a sanitizer sees nothing but it. One argument chooses the test;
// exit status 0 says that it passed.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memory/caching_allocator.h"

using gencore::memory::CachingAllocator;

namespace {

constexpr int kThreads = 4;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "memory_stress: %s\n", what);
  std::_Exit(1);
}

// A buffer whose first and last bytes carry its owner's mark, so that two owners of one block are noticed.
struct Buffer {
  unsigned char* data;
  size_t bytes;
  unsigned char mark;
};

Buffer make(size_t bytes, unsigned char mark) {
  Buffer b{static_cast<unsigned char*>(CachingAllocator::instance().allocate(bytes)), bytes, mark};
  if (!b.data) fail("allocate() returned nothing");
  if (reinterpret_cast<uintptr_t>(b.data) % 64) fail("misaligned buffer");
  const size_t edge = bytes < 256 ? bytes : 256;
  std::memset(b.data, mark, edge);
  std::memset(b.data + bytes - edge, mark, edge);
  return b;
}

void drop(const Buffer& b) {
  const size_t edge = b.bytes < 256 ? b.bytes : 256;
  for (size_t i = 0; i < edge; ++i)
    if (b.data[i] != b.mark || b.data[b.bytes - 1 - i] != b.mark) fail("a buffer was written by somebody else");
  CachingAllocator::instance().deallocate(b.data);
}

// Random requests, some freed by another thread through a shared shelf.
void work(int seed, int steps, std::mutex& mutex, std::vector<Buffer>& shelf, const std::atomic<bool>& stop) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<Buffer> own;
  for (int step = 0; step < steps && !stop; ++step) {
    const size_t bytes = 1 + random() % (size_t{1} << (4 + random() % 18));
    const Buffer made = make(bytes, static_cast<unsigned char>(random()));
    switch (random() % 3) {
      case 0:
        drop(made);
        break;
      case 1:
        own.push_back(made);
        break;
      default: {
        Buffer taken{};
        {
          std::lock_guard lock(mutex);
          shelf.push_back(made);
          if (shelf.size() > 16) {
            const size_t at = random() % shelf.size();
            taken = shelf[at];
            shelf[at] = shelf.back();
            shelf.pop_back();
          }
        }
        if (taken.data) drop(taken);
      }
    }
    if (own.size() > 20) {
      const size_t at = random() % own.size();
      drop(own[at]);
      own[at] = own.back();
      own.pop_back();
    }
  }
  for (const Buffer& b : own) drop(b);
}

// `during` runs in the main thread while the others work.
template <class During>
void with_threads(int steps, const During& during) {
  std::mutex mutex;
  std::vector<Buffer> shelf;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { work(i, steps, mutex, shelf, stop); });
  during();
  if (steps == INT32_MAX) stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const Buffer& b : shelf) drop(b);
}

void check_all_returned() {
  CachingAllocator& a = CachingAllocator::instance();
  a.empty_cache();
  const auto s = a.stats();
  if (s.allocated_bytes || s.reserved_bytes || s.cached_bytes || s.cached_blocks) fail("bytes are left over");
  if (s.system_allocations != s.system_frees || s.misses != s.system_allocations) fail("the counts do not add up");
  if (s.hits == 0) fail("nothing was ever reused");
}

// Requests in all threads while the limit changes and caching goes off and on.
void threads() {
  CachingAllocator& a = CachingAllocator::instance();
  with_threads(4000, [&] {
    for (int i = 0; i < 200; ++i) {
      a.set_limit(size_t{1} << (16 + i % 8));
      if (i % 50 == 49) a.set_caching(false);
      if (i % 20 == 19) a.empty_cache();
      a.set_caching(true);
      if (a.stats().peak_reserved_bytes <= 0) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    a.set_limit(size_t{1} << 28);
  });
  check_all_returned();
}

// Children made while other threads hold the locks: each must be able to allocate and to free what the parent made.
void forks() {
  with_threads(INT32_MAX, [&] {
    const Buffer inherited = make(100000, 7);
    for (int i = 0; i < 100; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        alarm(20);  // a deadlock ends the child by a signal
        if (CachingAllocator::instance().stats().cached_blocks != 0) _exit(2);
        for (size_t bytes : {100, 5000, 70000, 3000000}) drop(make(bytes, 1));
        for (size_t bytes = 961; bytes < (1 << 22); bytes += bytes / 8) drop(make(bytes, 2));
        drop(inherited);
        _exit(0);
      }
      int status = 0;
      if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("a forked child failed");
    }
    drop(inherited);
  });
  check_all_returned();
}

void double_free(size_t bytes) {
  const Buffer b = make(bytes, 1);
  drop(b);
  CachingAllocator::instance().deallocate(b.data);  // must abort
}

void underrun() {
  const Buffer b = make(10000, 1);
  std::memset(b.data - 16, 0, 16);
  CachingAllocator::instance().deallocate(b.data);  // must abort
}

}  // namespace

int main(int, char** arguments) {
  const std::string test = arguments[1];
  CachingAllocator::instance().set_limit(size_t{1} << 28);
  CachingAllocator::instance().set_caching(true);
  if (test == "threads") threads();
  if (test == "forks") forks();
  if (test == "double_free") double_free(10000);
  if (test == "underrun") underrun();
  std::printf("done\n");
  return 0;
}
