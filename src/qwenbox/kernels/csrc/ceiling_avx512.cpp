// Ceilings of 512-bit products: VNNI for int8, the bf16 dot product or widened float32 fma for bf16. See ceiling.h.
// A fed block is 6 rows by 64 channels by 128 inputs: 24 accumulators, weights from L1, activations broadcast from L1, results stored.
#include <immintrin.h>

#include "ceiling.h"

namespace qwenbox::ceiling {
namespace {

bool has_avx512() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// The products are spelled in assembly because GCC 12 copies the accumulator of the intrinsics around in every step.
struct Vnni {
  using Acc = __m512i;
  using In = __m512i;
  static constexpr int kInputs = 4;
  static Acc zero() { return _mm512_setzero_si512(); }
  static In load(const int8_t* p) { return _mm512_load_si512(p); }
  static In broadcast(const int8_t* p) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
  static void dot(Acc& acc, In x, In w) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x)); }
  static void store(int32_t* p, Acc acc) { _mm512_store_si512(p, acc); }
};

struct Bf16 {
  using Acc = __m512;
  using In = __m512i;
  static constexpr int kInputs = 2;
  static Acc zero() { return _mm512_setzero_ps(); }
  static In load(const int8_t* p) { return Vnni::load(p); }
  static In broadcast(const int8_t* p) { return Vnni::broadcast(p); }
  static void dot(Acc& acc, In x, In w) { asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x)); }
  static void store(int32_t* p, Acc acc) { _mm512_store_ps(p, acc); }
};

struct Fma {
  using Acc = __m512;
  using In = __m512;
  static constexpr int kInputs = 1;
  static Acc zero() { return _mm512_setzero_ps(); }
  static In load(const int8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static In broadcast(const int8_t* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
  static void dot(Acc& acc, In x, In w) { asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x)); }
  static void store(int32_t* p, Acc acc) { _mm512_store_ps(p, acc); }
};

template <class Op>
double registers(Operands& o, long blocks) {
  const typename Op::In x = Op::broadcast(o.x), w = Op::load(o.w);
  for (long b = 0; b < blocks; b++) {
    typename Op::Acc acc[16];
    for (auto& a : acc) a = Op::zero();
    for (int k = 0; k < 64; k++)
      for (auto& a : acc) Op::dot(a, x, w);
    for (int i = 0; i < 16; i++) Op::store(o.out + i * 16, acc[i]);
    asm volatile("" ::: "memory");
  }
  return 2.0 * 64 * 16 * 16 * Op::kInputs;
}

template <class Op>
double fed(Operands& o, long blocks) {
  constexpr int kSteps = 128 / Op::kInputs;
  constexpr int kBytes = Op::kInputs == 1 ? 32 : 64;
  for (long b = 0; b < blocks; b++) {
    const int8_t* w = o.w + (Op::kInputs == 4 ? (b & 1) * 8192 : 0);
    const int8_t* x = o.x + (b & 1) * 4096;
    typename Op::Acc acc[6][4];
    for (auto& row : acc)
      for (auto& a : row) a = Op::zero();
    for (int k = 0; k < kSteps; k++) {
      typename Op::In v[4];
      for (int c = 0; c < 4; c++) v[c] = Op::load(w + (k * 4 + c) * kBytes);
      for (int r = 0; r < 6; r++) {
        const auto value = Op::broadcast(x + r * 512 + k * 4);
        for (int c = 0; c < 4; c++) Op::dot(acc[r][c], value, v[c]);
      }
    }
    for (int r = 0; r < 6; r++)
      for (int c = 0; c < 4; c++) Op::store(o.out + (b & 1) * 512 + (r * 4 + c) * 16, acc[r][c]);
    asm volatile("" ::: "memory");
  }
  return 2.0 * 6 * 64 * 128;
}

}  // namespace

const Method avx512_int8{"avx512vnni", 0, has_vnni, nullptr, nullptr, registers<Vnni>, fed<Vnni>};
const Method avx512_bf16{"avx512bf16", 1, has_bf16, nullptr, nullptr, registers<Bf16>, fed<Bf16>};
const Method avx512_float{"avx512", 1, has_avx512, nullptr, nullptr, registers<Fma>, fed<Fma>};

}  // namespace qwenbox::ceiling
