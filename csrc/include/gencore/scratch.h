// Working memory that kernels reuse from call to call: fresh pages cost more than the arithmetic done in them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gencore {

enum class Scratch { shared = 0, worker = 1 };

// At least `bytes` bytes, aligned to 64, owned by the calling thread until it asks for the same slot again. A kernel
// takes `shared` in the thread that calls it and `worker` inside a parallel loop. Defined in bindings/scratch.cpp.
void* scratch(Scratch slot, size_t bytes);

// Cuts one piece of scratch into aligned arrays: first with base = nullptr to learn the size, then for good.
struct Arena {
  char* base = nullptr;
  size_t used = 0;
  // Always inlined: one copy a translation unit, or the linker would merge copies compiled for different processors.
  template <class T>
  inline __attribute__((always_inline)) T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return result;
  }
};

}  // namespace gencore
