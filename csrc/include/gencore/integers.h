// Arithmetic of sizes and indices.
#pragma once

#include "gencore/simd.h"

namespace gencore::GENCORE_ISA {

GENCORE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
GENCORE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
GENCORE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GENCORE_INLINE int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

}  // namespace gencore::GENCORE_ISA
