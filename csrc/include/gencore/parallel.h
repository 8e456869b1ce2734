// Parallel loops over torch's own thread pool, seen by kernels that know nothing of torch.
#pragma once

#include <cstdint>

namespace gencore {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Defined in bindings/parallel.cpp on torch's pool (and serially in builds without torch).
void parallel_for_raw(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);
int num_threads();

// Calls body(begin, end) on disjoint ranges that cover [begin, end), each of at least `grain` items where possible.
template <class Body>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  parallel_for_raw(
      begin, end, grain, [](int64_t b, int64_t e, void* context) { (*static_cast<const Body*>(context))(b, e); },
      const_cast<Body*>(&body));
}

}  // namespace gencore
