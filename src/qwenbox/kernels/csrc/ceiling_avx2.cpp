// Ceilings of 256-bit products: int8 pairs by maddubs or by the VNNI dot product, float32 fma for bf16. See ceiling.h.
// A fed block is 2 rows by 32 channels by 128 inputs: 8 accumulators, weights from L1, activations broadcast from L1, results stored.
// Maddubs: weights of four bits, the fastest there are: products of eight steps fit an int16 and are widened together.
#include <immintrin.h>

#include "ceiling.h"

namespace qwenbox::ceiling {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avxvnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }

struct Maddubs {
  using Acc = __m256i;
  static constexpr int kInputs = 4;  // inputs that one 32-bit lane takes a step
  static constexpr int kRun = 8;     // steps before sums are widened
  static Acc zero() { return _mm256_setzero_si256(); }
  static Acc load(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static Acc broadcast(const int8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
  static void dot(Acc& acc, Acc x, Acc w) {
    Acc pairs;  // in assembly, so that equal products are not computed once, nor equal runs of them
    asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(pairs) : "x"(w), "x"(x));
  }
  static void widen(Acc& sum, Acc run) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(run, _mm256_set1_epi16(1))); }
  static void store(int32_t* p, Acc acc) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), acc); }
};

struct Vnni : Maddubs {
  static constexpr int kRun = 0;
  static void dot(Acc& acc, Acc x, Acc w) { asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x)); }
};

struct Fma {
  using Acc = __m256;
  static constexpr int kInputs = 1, kRun = 0;
  static Acc zero() { return _mm256_setzero_ps(); }
  // Eight bf16 numbers widened to float32.
  static Acc load(const int8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static Acc broadcast(const int8_t* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static void dot(Acc& acc, Acc x, Acc w) { asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x)); }
  static void store(int32_t* p, Acc acc) { _mm256_store_ps(reinterpret_cast<float*>(p), acc); }
};

// acc of `count` sums after `steps` of step(k, acc), in runs where sums are widened.
template <class Op, int steps, int count, class Step>
void sum_up(typename Op::Acc (&acc)[count], Step step) {
  for (auto& a : acc) a = Op::zero();
  if constexpr (Op::kRun == 0) {
    for (int k = 0; k < steps; k++) step(k, acc);
  } else {
    for (int first = 0; first < steps; first += Op::kRun) {
      typename Op::Acc run[count];
      for (auto& a : run) a = Op::zero();
#pragma GCC unroll 8
      for (int k = first; k < first + Op::kRun; k++) step(k, run);
      for (int i = 0; i < count; i++) {
        Op::widen(acc[i], run[i]);
        asm("" : "+m"(acc[i]));  // the registers belong to the run
      }
    }
  }
}

template <class Op>
double registers(Operands& o, long blocks) {
  const typename Op::Acc x = Op::broadcast(o.x), w = Op::load(o.w);
  for (long b = 0; b < blocks; b++) {
    typename Op::Acc acc[10];
    sum_up<Op, 64>(acc, [&](int, auto& sums) {
      for (auto& a : sums) Op::dot(a, x, w);
    });
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
    sum_up<Op, kSteps>(acc, [&](int k, auto& sums) {
      const auto x0 = Op::broadcast(x + k * 4), x1 = Op::broadcast(x + 512 + k * 4);
      for (int c = 0; c < 4; c++) {
        const auto v = Op::load(w + (k * 4 + c) * kBytes);
        Op::dot(sums[c], x0, v);
        Op::dot(sums[4 + c], x1, v);
      }
    });
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
