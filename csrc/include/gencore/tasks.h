// Threads that take tasks from one counter, so that a slower one is waited for less, each with scratch arrays of its
// own.
#pragma once

#include "gencore/isa.h"
#include "gencore/parallel.h"
#include "gencore/scratch.h"

namespace gencore::GENCORE_ISA {

// body(task, work) for tasks [0, tasks), in any order. take(arena) lays out a thread's arrays, first to learn their
// size; prepare(work) fills what all its tasks share.
template <class Take, class Prepare, class Body>
inline void for_each_task(int64_t tasks, const Take& take, const Prepare& prepare, const Body& body) {
  int64_t next = 0;
  const int64_t threads = num_threads();
  parallel_for(0, threads < tasks ? threads : tasks, 1, [&](int64_t, int64_t) {
    Arena arena;
    take(arena);
    arena = {static_cast<char*>(scratch(Scratch::worker, arena.used)), 0};
    auto work = take(arena);
    prepare(work);
    while (true) {
      const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= tasks) return;
      body(task, work);
    }
  });
}

}  // namespace gencore::GENCORE_ISA
