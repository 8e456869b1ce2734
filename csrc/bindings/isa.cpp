#include "gencore/isa.h"

#include <cstdlib>
#include <cstring>

#include "bindings/check.h"

namespace gencore {

namespace {

Isa detect() {
#ifdef GENCORE_HAVE_AVX512
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa best = detect();
  if (const char* wanted = std::getenv("GENCORE_CPU_ISA")) {
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
      if (std::strcmp(wanted, isa_name(isa)) == 0 && isa <= best) return isa;
  }
  return best;
}

int64_t isa_index() { return static_cast<int64_t>(active_isa()); }

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace gencore

STABLE_TORCH_LIBRARY_FRAGMENT(gencore_c, m) { m.def("isa() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(gencore_c, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&gencore::isa_index)); }
