// The vector vocabulary in the compiler's own vectors: any processor. Names and meanings: vec_avx512.h.
#pragma once
#include <cstddef>
#include <cstdint>
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace qwenbox {
namespace {

typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4v __attribute__((vector_size(16)));
typedef uint32_t uint4v __attribute__((vector_size(16)));
typedef int16_t short8 __attribute__((vector_size(16)));
typedef uint16_t ushort8 __attribute__((vector_size(16)));
typedef uint8_t byte16 __attribute__((vector_size(16)));

struct Floats {
  float4 v[4];
};
struct Ints {
  int4v v[4];
};
struct Bytes {
  byte16 v[4];
};

constexpr int kTileRows = 2, kDenseRows = 2, kDenseBlocks = 1, kSumRows = 2, kSumBlocks = 1, kTotalRows = 2, kTotalBlocks = 1;
constexpr bool kKeepAccumulators = false;
constexpr int kUnrolledSums = 1;
constexpr int kFewRows = 1, kPackedRows = 1, kPackedBlocks = 1, kPackedBlocksBeside = 1, kPackedBlocksMore = 1;
constexpr bool kSplitNibbles = false, kHighInPlace = false;
constexpr int kAhead = 8192, kNear = 4608, kAheadInOrder = 0;

// f on each of the four quarters.
template <class R, class F>
QWENBOX_INLINE R quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
template <class V, class T>
QWENBOX_INLINE V load_quarter(const T* p, int i) {
  V v;
  __builtin_memcpy(&v, (const char*)p + 16 * i, 16);
  return v;
}

QWENBOX_INLINE Floats load(const float* p) {
  return quarters<Floats>([&](int i) { return load_quarter<float4>(p, i); });
}
QWENBOX_INLINE Ints load_ints(const int32_t* p) {
  return quarters<Ints>([&](int i) { return load_quarter<int4v>(p, i); });
}
QWENBOX_INLINE Bytes load_bytes(const uint8_t* p) {
  return quarters<Bytes>([&](int i) { return load_quarter<byte16>(p, i); });
}
QWENBOX_INLINE void store(float* p, Floats a) { __builtin_memcpy(p, &a, 64); }
QWENBOX_INLINE void store(int32_t* p, Ints a) { __builtin_memcpy(p, &a, 64); }
QWENBOX_INLINE void store(uint8_t* p, Bytes a) { __builtin_memcpy(p, &a, 64); }
QWENBOX_INLINE Floats load_first(const float* p, int n) {
  float lanes[16] = {};
  __builtin_memcpy(lanes, p, size_t(n) * 4);
  return load(lanes);
}
QWENBOX_INLINE void store_first(float* p, Floats a, int n) { __builtin_memcpy(p, &a, size_t(n) * 4); }
QWENBOX_INLINE Floats splat(float a) {
  return quarters<Floats>([&](int) { return float4{a, a, a, a}; });
}
QWENBOX_INLINE Ints splat(int32_t a) {
  return quarters<Ints>([&](int) { return int4v{a, a, a, a}; });
}

QWENBOX_INLINE Floats operator+(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] + b.v[i]; });
}
QWENBOX_INLINE Floats operator-(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] - b.v[i]; });
}
QWENBOX_INLINE Floats operator*(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] * b.v[i]; });
}
QWENBOX_INLINE Floats operator/(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] / b.v[i]; });
}
QWENBOX_INLINE Floats exact_fma(Floats a, Floats b, Floats c) { return a * b + c; }
QWENBOX_INLINE Floats min(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
QWENBOX_INLINE Floats max(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
QWENBOX_INLINE Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return quarters<Floats>([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}
QWENBOX_INLINE Floats keep_first(Floats a, int n, Floats rest) {
  return quarters<Floats>([&](int i) { return int4v{0, 1, 2, 3} < int4v{n, n, n, n} - 4 * i ? a.v[i] : rest.v[i]; });
}

QWENBOX_INLINE Ints operator+(Ints a, Ints b) {
  return quarters<Ints>([&](int i) { return a.v[i] + b.v[i]; });
}
QWENBOX_INLINE Ints operator-(Ints a, Ints b) {
  return quarters<Ints>([&](int i) { return a.v[i] - b.v[i]; });
}
QWENBOX_INLINE Ints operator&(Ints a, Ints b) {
  return quarters<Ints>([&](int i) { return a.v[i] & b.v[i]; });
}
QWENBOX_INLINE Ints operator|(Ints a, Ints b) {
  return quarters<Ints>([&](int i) { return a.v[i] | b.v[i]; });
}
QWENBOX_INLINE Ints max(Ints a, Ints b) {
  return quarters<Ints>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <int n>
QWENBOX_INLINE Ints shift_left(Ints a) {
  return quarters<Ints>([&](int i) { return int4v(uint4v(a.v[i]) << n); });
}
template <int n>
QWENBOX_INLINE Ints shift_right(Ints a) {
  return quarters<Ints>([&](int i) { return int4v(uint4v(a.v[i]) >> n); });
}
template <int n>
QWENBOX_INLINE Ints shift_right_signed(Ints a) {
  return quarters<Ints>([&](int i) { return a.v[i] >> n; });
}
QWENBOX_INLINE Ints to_ints(Floats a) {
  return quarters<Ints>([&](int i) { return __builtin_convertvector(a.v[i], int4v); });
}
QWENBOX_INLINE Floats to_floats(Ints a) {
  return quarters<Floats>([&](int i) { return __builtin_convertvector(a.v[i], float4); });
}
QWENBOX_INLINE Ints bits(Floats a) {
  return quarters<Ints>([&](int i) { return int4v(a.v[i]); });
}
QWENBOX_INLINE Floats from_bits(Ints a) {
  return quarters<Floats>([&](int i) { return float4(a.v[i]); });
}
QWENBOX_INLINE Floats rint(Floats a) {
  // Adding 1.5 * 2^23 leaves no fraction bits; the sign of a zero is put back.
  const Floats big = splat(12582912.0f);
  return from_bits(bits((a + big) - big) | (bits(a) & splat(INT32_MIN)));
}

#ifdef __SSE2__
// Without an fma instruction: the product is exact in double; the sum is rounded to odd, so that rounding it again to float is right
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
QWENBOX_INLINE __m128d fma_to_odd(__m128d a, __m128d b, __m128d c) {
  __m128d p = _mm_mul_pd(a, b), s = _mm_add_pd(p, c), q = _mm_sub_pd(s, p);
  __m128d error = _mm_add_pd(_mm_sub_pd(p, _mm_sub_pd(s, q)), _mm_sub_pd(c, q));
  __m128d inexact = _mm_or_pd(_mm_cmplt_pd(error, _mm_setzero_pd()), _mm_cmpgt_pd(error, _mm_setzero_pd()));
  // An inexact even s moves one unit towards the error: up in magnitude where their signs agree, down where not.
  __m128i away = _mm_srai_epi32(_mm_shuffle_epi32(_mm_castpd_si128(_mm_xor_pd(s, error)), 0xF5), 31);
  __m128i step = _mm_or_si128(away, _mm_set1_epi64x(1));
  __m128i even = _mm_sub_epi64(_mm_and_si128(_mm_castpd_si128(s), _mm_set1_epi64x(1)), _mm_set1_epi64x(1));
  return _mm_castsi128_pd(_mm_add_epi64(_mm_castpd_si128(s), _mm_and_si128(_mm_and_si128(step, even), _mm_castpd_si128(inexact))));
}
QWENBOX_INLINE float4 fma_quarter(float4 a, float4 b, float4 c) {
  __m128 x = a, y = b, z = c;
  __m128 lo = _mm_cvtpd_ps(fma_to_odd(_mm_cvtps_pd(x), _mm_cvtps_pd(y), _mm_cvtps_pd(z)));
  x = _mm_movehl_ps(x, x), y = _mm_movehl_ps(y, y), z = _mm_movehl_ps(z, z);
  return _mm_movelh_ps(lo, _mm_cvtpd_ps(fma_to_odd(_mm_cvtps_pd(x), _mm_cvtps_pd(y), _mm_cvtps_pd(z))));
}
#elif defined(__ARM_NEON)
QWENBOX_INLINE float4 fma_quarter(float4 a, float4 b, float4 c) { return vfmaq_f32(c, a, b); }
#else
QWENBOX_INLINE float4 fma_quarter(float4 a, float4 b, float4 c) {
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
#endif
QWENBOX_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return quarters<Floats>([&](int i) { return fma_quarter(a.v[i], b.v[i], c.v[i]); });
}

QWENBOX_INLINE float reduce_add(Floats a) {
  float4 b = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
QWENBOX_INLINE float reduce_max(Floats a) {
  float best = a.v[0][0];
  for (int i = 1; i < 16; ++i) best = a.v[i / 4][i % 4] > best ? a.v[i / 4][i % 4] : best;
  return best;
}
QWENBOX_INLINE int32_t reduce_add(Ints a) {
  int4v b = a.v[0] + a.v[1] + a.v[2] + a.v[3];
  return b[0] + b[1] + b[2] + b[3];
}
QWENBOX_INLINE int32_t reduce_max(Ints a) {
  int32_t best = a.v[0][0];
  for (int i = 1; i < 16; ++i) best = a.v[i / 4][i % 4] > best ? a.v[i / 4][i % 4] : best;
  return best;
}

QWENBOX_INLINE Ints load_u16(const uint16_t* p) {
  return quarters<Ints>([&](int i) { return int4v{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
QWENBOX_INLINE Ints load_u8(const uint8_t* p) {
  return quarters<Ints>([&](int i) { return int4v{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
QWENBOX_INLINE Ints load_i16(const int16_t* p) {
  return quarters<Ints>([&](int i) { return int4v{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
QWENBOX_INLINE Floats load_f16(const uint16_t* p) {
  Ints h = load_u16(p);
  // The exponent and fraction moved up and scaled by 2^112 are right for zero, subnormal and normal numbers; inf and NaN need exponent 255.
  return quarters<Floats>([&](int i) {
    int4v sign = (h.v[i] & 0x8000) << 16, magnitude = (h.v[i] & 0x7FFF) << 13;
    int4v special = magnitude >= int4v{0x0F800000, 0x0F800000, 0x0F800000, 0x0F800000};
    int4v finite = int4v(float4(magnitude) * 0x1p112f);
    return float4((special ? magnitude | 0x7F800000 : finite) | sign);
  });
}
QWENBOX_INLINE Floats load_bf16(const uint16_t* p) { return from_bits(shift_left<16>(load_u16(p))); }
QWENBOX_INLINE void load_bf16_pairs(const uint16_t* p, Floats& even, Floats& odd) {
  Ints both = quarters<Ints>([&](int i) { return load_quarter<int4v>(p, i); });
  even = from_bits(shift_left<16>(both));
  odd = from_bits(both & splat(int32_t(0xFFFF0000u)));
}
QWENBOX_INLINE void store_bf16(uint16_t* p, Floats a) {
  for (int i = 0; i < 4; ++i) {
    uint4v b = uint4v(a.v[i]), upper = b >> 16;
    uint4v rounded = (b + 0x7FFF + (upper & 1)) >> 16;
    rounded = a.v[i] == a.v[i] ? rounded : upper | 0x40;
    for (int j = 0; j < 4; ++j) p[4 * i + j] = uint16_t(rounded[j]);
  }
}
QWENBOX_INLINE void store_i8(int8_t* p, Ints a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(a.v[i / 4][i % 4]);
}
QWENBOX_INLINE void prefetch(const void* p) { QWENBOX_FETCH(__builtin_prefetch(p)); }
QWENBOX_INLINE void prefetch_write(const void* p) { QWENBOX_FETCH(__builtin_prefetch(p, 1)); }
QWENBOX_INLINE void prefetch_far(const void* p) { QWENBOX_FETCH(__builtin_prefetch(p, 0, 2)); }

// Products of neighbouring int16, added in pairs.
QWENBOX_INLINE int4v madd(short8 a, short8 b) {
#ifdef __SSE2__
  return int4v(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  int4v x = int4v(a), y = int4v(b);
  return (int4v(uint4v(x) << 16) >> 16) * (int4v(uint4v(y) << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}
template <int bits>
constexpr int kShortQuads = 0;
template <int bits>
QWENBOX_INLINE Ints dot4(Ints acc, Bytes w, Ints a) {
  return quarters<Ints>([&](int i) {
    short8 codes_even = short8(w.v[i]) & 255, codes_odd = short8(ushort8(w.v[i]) >> 8);
    short8 inputs_even = short8(ushort8(a.v[i]) << 8) >> 8, inputs_odd = short8(a.v[i]) >> 8;
    return acc.v[i] + madd(codes_even, inputs_even) + madd(codes_odd, inputs_odd);
  });
}
QWENBOX_INLINE Bytes hold(Bytes a) { return a; }
QWENBOX_INLINE Ints zeros() { return splat(0); }
QWENBOX_INLINE Ints spread_lane(const int32_t* p) { return splat(*p); }
QWENBOX_INLINE Ints fold(Ints sums, Ints acc) { return sums + acc; }
QWENBOX_INLINE Ints load_quad(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return splat(quad);
}
QWENBOX_INLINE Ints pair(Ints lo, Ints hi) { return (lo & splat(0xFFFF)) | shift_left<16>(hi); }
QWENBOX_INLINE Ints both_low(Ints p) { return pair(p, p); }
QWENBOX_INLINE Ints both_high(Ints p) { return pair(shift_right<16>(p), shift_right<16>(p)); }
QWENBOX_INLINE Ints dot2(Ints acc, Ints p, Ints q) {
  return quarters<Ints>([&](int i) { return acc.v[i] + madd(short8(p.v[i]), short8(q.v[i])); });
}
QWENBOX_INLINE Ints load_i8_pairs(const int8_t* p) {
  return quarters<Ints>([&](int i) {
    const int8_t* q = p + 8 * i;
    return int4v(short8{q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]});
  });
}
QWENBOX_INLINE Bytes low_nibbles(Bytes a) {
  return quarters<Bytes>([&](int i) { return a.v[i] & 15; });
}
QWENBOX_INLINE Bytes high_nibbles(Bytes a) {
  return quarters<Bytes>([&](int i) { return byte16(ushort8(a.v[i]) >> 4) & 15; });
}
QWENBOX_INLINE Bytes high_in_place(Bytes a) {
  return quarters<Bytes>([&](int i) { return a.v[i] & 0xF0; });
}
template <int from, int mask>
QWENBOX_INLINE Bytes or_bits(Bytes codes, Bytes plane) {
  return quarters<Bytes>([&](int i) {
    ushort8 bits16 = ushort8(plane.v[i]);
    byte16 moved = byte16(from <= 4 ? bits16 << (from <= 4 ? 4 - from : 0) : bits16 >> (from > 4 ? from - 4 : 0));
    return codes.v[i] | (moved & uint8_t(mask));
  });
}

}  // namespace
}  // namespace qwenbox
