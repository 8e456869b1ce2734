// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011),
// and normal numbers from it. The stream is part of gencore's contract: reference, CPU, Triton and CUDA draw the same.
//
// Numbers come in blocks of 64. Block b uses the counters (16 b + l, 0, 0), l = 0..15, as 128-bit numbers; the word w
// of counter l gives element 16 w + l. Words 0 and 1 are one Box-Muller pair, words 2 and 3 the other:
//   u = (word_even + 1/2) / 2^32,  t = int32(word_odd) / 2^31,
//   even = sqrt(-2 log u) cos(pi t),  odd = sqrt(-2 log u) sin(pi t).
#pragma once

#include "gencore/math.h"

namespace gencore::GENCORE_ISA {

constexpr int kPhiloxBlock = 64;

typedef uint64_t vwide __attribute__((vector_size(kLanes * 4)));

// Products of the low halves of 64-bit lanes.
GENCORE_INLINE vwide multiply_low(vwide a, uint32_t constant) {
#if defined(__AVX512F__)
  return (vwide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(constant));
#elif defined(__AVX2__)
  return (vwide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(constant));
#elif defined(__x86_64__)
  return (vwide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(constant));
#else
  return (a & 0xffffffffull) * static_cast<uint64_t>(constant);
#endif
}

// The four words of kLanes/2 counters. A 64-bit lane holds one counter; only its low half counts, and whatever the
// products leave in the high half is ignored by the next product.
GENCORE_INLINE void philox_rounds(vwide counter, uint64_t seed, vwide word[4]) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  vwide c0 = counter, c1 = counter >> 32, c2 = {}, c3 = {};
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    const vwide p0 = multiply_low(c0, kMultiplier0), p1 = multiply_low(c2, kMultiplier1);
    c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(key0);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(key1);
    c1 = p1;
    c3 = p0;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

// The 64 words of block `block`, in element order.
GENCORE_INLINE void philox_block(uint64_t seed, uint64_t block, uint32_t words[kPhiloxBlock]) {
  vwide lane_index;
  for (int i = 0; i < kLanes / 2; i++) lane_index[i] = 2 * i;
#pragma GCC unroll 4
  for (int part = 0; part < 16 / kLanes; part++) {
    // Even counters in one vector, odd ones in the other: interleaving them is one shift and one blend.
    vwide even[4], odd[4];
    const vwide counter = lane_index + (16 * block + static_cast<uint64_t>(part * kLanes));
    philox_rounds(counter, seed, even);
    philox_rounds(counter + 1, seed, odd);
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
      const vwide both = (even[w] & 0xffffffffull) | (odd[w] << 32);
      std::memcpy(words + 16 * w + part * kLanes, &both, sizeof both);
    }
  }
}

GENCORE_INLINE vfloat uniform_from_word(vuint word) {
#if defined(__AVX512F__)
  const vfloat value = (vfloat)_mm512_cvtepu32_ps((__m512i)word);
#else
  // The two halves convert exactly, and their sum rounds once: the same result as a direct conversion.
  const vfloat value = __builtin_convertvector((vint)(word >> 16), vfloat) * 65536.0f +
                       __builtin_convertvector((vint)(word & 0xffffu), vfloat);
#endif
  return value * 0x1p-32f + 0x1p-33f;
}

// 64 standard normal numbers.
GENCORE_INLINE void normal_block(uint64_t seed, uint64_t block, float eps[kPhiloxBlock]) {
  alignas(64) uint32_t words[kPhiloxBlock];
  philox_block(seed, block, words);
#pragma GCC unroll 2
  for (int pair = 0; pair < 2; pair++) {
#pragma GCC unroll 4
    for (int part = 0; part < 16; part += kLanes) {
      vuint word_u;
      vint word_t;
      std::memcpy(&word_u, words + 32 * pair + part, sizeof word_u);
      std::memcpy(&word_t, words + 32 * pair + 16 + part, sizeof word_t);
      const vfloat radius = square_root(-2.0f * logarithm(uniform_from_word(word_u)));
      vfloat sine, cosine;
      sin_cos_pi(__builtin_convertvector(word_t, vfloat) * 0x1p-31f, &sine, &cosine);
      store(eps + 32 * pair + part, radius * cosine);
      store(eps + 32 * pair + 16 + part, radius * sine);
    }
  }
}

}  // namespace gencore::GENCORE_ISA
