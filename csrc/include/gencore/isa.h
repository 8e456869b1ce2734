// Which instruction set runs: every csrc/cpu file is compiled once for each, inside namespace gencore::GENCORE_ISA,
// and the choice falls here at run time, by CPUID, never on the build machine.
#pragma once

namespace gencore {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that this build holds and this processor runs, or the lower one that the environment
// variable GENCORE_CPU_ISA names (baseline, avx2 or avx512). Read once.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace gencore

// Declares kernel `name` taking `Args` once for each instruction set, and `run_name`, which calls the right one.
#ifdef GENCORE_HAVE_AVX512
#define GENCORE_DECLARE_KERNEL(name, Args) \
  namespace gencore {                      \
  namespace baseline {                     \
  void name(Args);                         \
  }                                        \
  namespace avx2 {                         \
  void name(Args);                         \
  }                                        \
  namespace avx512 {                       \
  void name(Args);                         \
  }                                        \
  inline void run_##name(Args args) {      \
    switch (active_isa()) {                \
      case Isa::avx512:                    \
        return avx512::name(args);         \
      case Isa::avx2:                      \
        return avx2::name(args);           \
      default:                             \
        return baseline::name(args);       \
    }                                      \
  }                                        \
  }
#else
#define GENCORE_DECLARE_KERNEL(name, Args)                    \
  namespace gencore {                                         \
  namespace baseline {                                        \
  void name(Args);                                            \
  }                                                           \
  inline void run_##name(Args args) { baseline::name(args); } \
  }
#endif
