#include "gencore/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace gencore {

void parallel_for_raw(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { function(b, e, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace gencore
