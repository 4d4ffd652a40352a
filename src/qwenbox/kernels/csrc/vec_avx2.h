// The vector vocabulary over AVX2, FMA and F16C, with AVX-VNNI where the compiler is told so. Names and meanings: vec_avx512.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace qwenbox {
namespace {

struct Floats {
  __m256 lo, hi;
};
struct Ints {
  __m256i lo, hi;
};
struct Bytes {
  __m256i lo, hi;
};

// Rows by blocks of 16 channels that fit the 16 registers, as vec_avx512.h names them.
constexpr bool kKeepAccumulators = false;
constexpr int kUnrolledSums = 8;
constexpr int kTileRows = 2, kDenseRows = 6, kDenseBlocks = 1, kTotalRows = 3, kTotalBlocks = 1;
constexpr int kFewRows = 6, kPackedRows = 3, kPackedBlocks = 4, kPackedBlocksBeside = 2, kPackedBlocksMore = 2;
constexpr bool kSplitNibbles = true;
#ifdef __AVXVNNI__
constexpr bool kHighInPlace = true;
constexpr int kAhead = 8192, kNear = 4608, kAheadInOrder = 0;
constexpr int kSumRows = 6, kSumBlocks = 1;
#else
constexpr bool kHighInPlace = false;  // sixteen times their products do not fit short sums
constexpr int kAhead = 12288, kNear = 0, kAheadInOrder = 2048;
constexpr int kSumRows = 4, kSumBlocks = 1;
#endif

QWENBOX_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
QWENBOX_INLINE void store_256(void* p, __m256i a) { _mm256_storeu_si256((__m256i*)p, a); }

QWENBOX_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QWENBOX_INLINE Ints load_ints(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
QWENBOX_INLINE Bytes load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
QWENBOX_INLINE void store(float* p, Floats a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
QWENBOX_INLINE void store(int32_t* p, Ints a) {
  store_256(p, a.lo);
  store_256(p + 8, a.hi);
}
QWENBOX_INLINE void store(uint8_t* p, Bytes a) {
  store_256(p, a.lo);
  store_256(p + 32, a.hi);
}
QWENBOX_INLINE Floats load_first(const float* p, int n) {
  alignas(32) float lanes[16] = {};
  __builtin_memcpy(lanes, p, size_t(n) * 4);
  return load(lanes);
}
QWENBOX_INLINE void store_first(float* p, Floats a, int n) {
  alignas(32) float lanes[16];
  store(lanes, a);
  __builtin_memcpy(p, lanes, size_t(n) * 4);
}
QWENBOX_INLINE Floats splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
QWENBOX_INLINE Ints splat(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }

QWENBOX_INLINE Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
QWENBOX_INLINE Floats exact_fma(Floats a, Floats b, Floats c) { return fma(a, b, c); }
QWENBOX_INLINE Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
QWENBOX_INLINE Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
QWENBOX_INLINE Floats keep_first(Floats a, int n, Floats rest) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_blendv_ps(rest.lo, a.lo, lo), _mm256_blendv_ps(rest.hi, a.hi, hi)};
}
QWENBOX_INLINE Floats rint(Floats a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
}

QWENBOX_INLINE Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
QWENBOX_INLINE Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
QWENBOX_INLINE Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
QWENBOX_INLINE Ints operator|(Ints a, Ints b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
QWENBOX_INLINE Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
template <int n>
QWENBOX_INLINE Ints shift_left(Ints a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
QWENBOX_INLINE Ints shift_right(Ints a) {
  return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}
template <int n>
QWENBOX_INLINE Ints shift_right_signed(Ints a) {
  return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}
QWENBOX_INLINE Ints to_ints(Floats a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
QWENBOX_INLINE Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
QWENBOX_INLINE Ints bits(Floats a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
QWENBOX_INLINE Floats from_bits(Ints a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }

QWENBOX_INLINE float reduce_add(Floats a) {
  __m256 b = _mm256_add_ps(a.lo, a.hi);
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
QWENBOX_INLINE float reduce_max(Floats a) {
  __m256 b = _mm256_max_ps(a.lo, a.hi);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
QWENBOX_INLINE int32_t reduce_add(Ints a) {
  __m256i b = _mm256_add_epi32(a.lo, a.hi);
  __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xB1)));
}
QWENBOX_INLINE int32_t reduce_max(Ints a) {
  __m256i b = _mm256_max_epi32(a.lo, a.hi);
  __m128i c = _mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xB1)));
}

QWENBOX_INLINE Floats load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
QWENBOX_INLINE Floats load_bf16(const uint16_t* p) {
  __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
          hi = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)));
  return from_bits({_mm256_slli_epi32(lo, 16), _mm256_slli_epi32(hi, 16)});
}
QWENBOX_INLINE void load_bf16_pairs(const uint16_t* p, Floats& even, Floats& odd) {
  Ints both = {load_256(p), load_256(p + 16)};
  even = from_bits(shift_left<16>(both));
  odd = from_bits(both & splat(int32_t(0xFFFF0000u)));
}
QWENBOX_INLINE __m256i round_bf16(__m256 a) {
  __m256i b = _mm256_castps_si256(a), upper = _mm256_srli_epi32(b, 16), odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7FFF)), odd), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
}
QWENBOX_INLINE void store_bf16(uint16_t* p, Floats a) {
  store_256(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(a.lo), round_bf16(a.hi)), 0xD8));
}
QWENBOX_INLINE void store_i8(int8_t* p, Ints a) {
  const __m256i low_bytes = _mm256_set1_epi32(255);
  __m256i words = _mm256_packus_epi32(_mm256_and_si256(a.lo, low_bytes), _mm256_and_si256(a.hi, low_bytes));
  words = _mm256_permute4x64_epi64(words, 0xD8);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
QWENBOX_INLINE Ints load_u8(const uint8_t* p) {
  __m128i b = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
QWENBOX_INLINE Ints load_i16(const int16_t* p) {
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
QWENBOX_INLINE void prefetch(const void* p) { QWENBOX_FETCH(_mm_prefetch((const char*)p, _MM_HINT_T0)); }
QWENBOX_INLINE void prefetch_write(const void* p) { QWENBOX_FETCH(__asm__ volatile("prefetchw %0" : : "m"(*(const char*)p))); }
// Volatile, or GCC moves them all before the products, where they wait for each other.
QWENBOX_INLINE void prefetch_far(const void* p) { QWENBOX_FETCH(__asm__ volatile("prefetcht1 %0" : : "m"(*(const char*)p))); }

// The assembly keeps GCC 12 from copying accumulators, and from adding products in another order, for which it would spill all of them.
#ifdef __AVXVNNI__
template <int bits>
constexpr int kShortQuads = 0;
template <int bits>
QWENBOX_INLINE __m256i dot4_half(__m256i acc, __m256i w, __m256i a) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(a));
  return acc;
}
#else
// Products of two inputs in an int16 lane, |product| <= 2 * 127 * (2^bits - 1): 8 * 3810, 4 * 7874, 2 * 16002. Those of bytes do not fit.
template <int bits>
constexpr int kShortQuads = bits == 8 ? 0 : 1 << (7 - bits);
template <int bits>
QWENBOX_INLINE __m256i dot4_half(__m256i acc, __m256i w, __m256i a) {
  if (bits < 8) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, a));
  } else {  // vpmaddubsw would saturate: even and odd inputs apart, as 16-bit products
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
    acc = _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
  }
  __asm__("" : "+x"(acc));
  return acc;
}
#endif
template <int bits>
QWENBOX_INLINE Ints dot4(Ints acc, Bytes w, Ints a) {
  return {dot4_half<bits>(acc.lo, w.lo, a.lo), dot4_half<bits>(acc.hi, w.hi, a.hi)};
}
QWENBOX_INLINE Ints fold(Ints sums, Ints acc) {
  const __m256i ones = _mm256_set1_epi16(1);
  return sums + Ints{_mm256_madd_epi16(acc.lo, ones), _mm256_madd_epi16(acc.hi, ones)};
}
QWENBOX_INLINE Bytes hold(Bytes a) { return a; }
QWENBOX_INLINE Ints zeros() { return splat(0); }
QWENBOX_INLINE Ints spread_lane(const int32_t* p) { return splat(*p); }
QWENBOX_INLINE Ints load_quad(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return splat(quad);
}
QWENBOX_INLINE Ints pair(Ints lo, Ints hi) {
  return {_mm256_blend_epi16(lo.lo, _mm256_slli_epi32(hi.lo, 16), 0xAA), _mm256_blend_epi16(lo.hi, _mm256_slli_epi32(hi.hi, 16), 0xAA)};
}
QWENBOX_INLINE Ints both_low(Ints p) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
  return {_mm256_shuffle_epi8(p.lo, order), _mm256_shuffle_epi8(p.hi, order)};
}
QWENBOX_INLINE Ints both_high(Ints p) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));
  return {_mm256_shuffle_epi8(p.lo, order), _mm256_shuffle_epi8(p.hi, order)};
}
#ifdef __AVXVNNI__
QWENBOX_INLINE Ints dot2(Ints acc, Ints p, Ints q) {
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc.lo) : "x"(p.lo), "xm"(q.lo));
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc.hi) : "x"(p.hi), "xm"(q.hi));
  return acc;
}
#else
QWENBOX_INLINE Ints dot2(Ints acc, Ints p, Ints q) { return acc + Ints{_mm256_madd_epi16(p.lo, q.lo), _mm256_madd_epi16(p.hi, q.hi)}; }
#endif
QWENBOX_INLINE Ints load_i8_pairs(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
QWENBOX_INLINE Bytes low_nibbles(Bytes a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
QWENBOX_INLINE Bytes high_nibbles(Bytes a) { return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)}); }
QWENBOX_INLINE Bytes high_in_place(Bytes a) {
  const __m256i mask = _mm256_set1_epi8(int8_t(0xF0));
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
template <int from, int mask>
QWENBOX_INLINE __m256i or_bits_half(__m256i codes, __m256i plane) {
  __m256i moved = from <= 4 ? _mm256_slli_epi16(plane, from <= 4 ? 4 - from : 0) : _mm256_srli_epi16(plane, from > 4 ? from - 4 : 0);
  return _mm256_or_si256(codes, _mm256_and_si256(moved, _mm256_set1_epi8(mask)));
}
template <int from, int mask>
QWENBOX_INLINE Bytes or_bits(Bytes codes, Bytes plane) {
  return {or_bits_half<from, mask>(codes.lo, plane.lo), or_bits_half<from, mask>(codes.hi, plane.hi)};
}

}  // namespace
}  // namespace qwenbox
