// Ceilings of 256-bit products: int8 pairs by maddubs or by the VNNI dot product, float32 fma for bf16. See ceiling.h.
// A fed block is 2 rows by 32 channels by 128 inputs: 8 accumulators, weights from L1, activations broadcast from L1, results stored.
#include <immintrin.h>

#include "ceiling.h"

namespace qwenbox::ceiling {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avxvnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }

struct Maddubs {
  using Acc = __m256i;
  static constexpr int kInputs = 4;  // inputs that one 32-bit lane takes a step
  static Acc zero() { return _mm256_setzero_si256(); }
  static Acc load(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static Acc broadcast(const int8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
  static void dot(Acc& acc, Acc x, Acc w) {
    Acc pairs;  // in assembly, so that equal products are not computed once
    asm("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(w), "x"(x));
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void store(int32_t* p, Acc acc) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), acc); }
};

struct Vnni : Maddubs {
  static void dot(Acc& acc, Acc x, Acc w) { asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x)); }
};

struct Fma {
  using Acc = __m256;
  static constexpr int kInputs = 1;
  static Acc zero() { return _mm256_setzero_ps(); }
  // Eight bf16 numbers widened to float32.
  static Acc load(const int8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static Acc broadcast(const int8_t* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static void dot(Acc& acc, Acc x, Acc w) { asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x)); }
  static void store(int32_t* p, Acc acc) { _mm256_store_ps(reinterpret_cast<float*>(p), acc); }
};

template <class Op>
double registers(Operands& o, long blocks) {
  const typename Op::Acc x = Op::broadcast(o.x), w = Op::load(o.w);
  for (long b = 0; b < blocks; b++) {
    typename Op::Acc acc[10];
    for (auto& a : acc) a = Op::zero();
    for (int k = 0; k < 64; k++)
      for (auto& a : acc) Op::dot(a, x, w);
    for (int i = 0; i < 10; i++) Op::store(o.out + i * 8, acc[i]);
    asm volatile("" ::: "memory");
  }
  return 2.0 * 64 * 10 * 8 * Op::kInputs;
}

template <class Op>
double fed(Operands& o, long blocks) {
  constexpr int kSteps = 128 / Op::kInputs;
  constexpr int kBytes = Op::kInputs == 1 ? 16 : 32;  // of one vector of weights
  for (long b = 0; b < blocks; b++) {
    const int8_t* w = o.w + (Op::kInputs == 1 ? 0 : (b & 1) * 4096);
    const int8_t* x = o.x + (b & 7) * 1024;
    typename Op::Acc acc[8];
    for (auto& a : acc) a = Op::zero();
    for (int k = 0; k < kSteps; k++) {
      const auto x0 = Op::broadcast(x + k * 4), x1 = Op::broadcast(x + 512 + k * 4);
      for (int c = 0; c < 4; c++) {
        const auto v = Op::load(w + (k * 4 + c) * kBytes);
        Op::dot(acc[c], x0, v);
        Op::dot(acc[4 + c], x1, v);
      }
    }
    for (int i = 0; i < 8; i++) Op::store(o.out + (b & 1) * 64 + i * 8, acc[i]);
    asm volatile("" ::: "memory");
  }
  return 2.0 * 2 * 32 * 128;
}

}  // namespace

const Method avx2_int8{"avx2", 0, has_avx2, nullptr, nullptr, registers<Maddubs>, fed<Maddubs>};
const Method avxvnni_int8{"avxvnni", 0, has_avxvnni, nullptr, nullptr, registers<Vnni>, fed<Vnni>};
const Method avx2_float{"avx2", 1, has_avx2, nullptr, nullptr, registers<Fma>, fed<Fma>};

}  // namespace qwenbox::ceiling
