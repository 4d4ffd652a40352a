// The vector vocabulary over AVX-512 F, BW, DQ, VL and VNNI. vec_avx2.h and vec_generic.h define the same names with the same results, bit
// for bit.
//
//   Floats, Ints   16 lanes of float32 / int32          Bytes   64 bytes; as codes: [16 channels][4 inputs]
//   load(float*) load_ints(int32*) load_bytes(u8*) store(p, v), no alignment needed; load_first(p, n) (other lanes 0), store_first(p, v,
//   n), 0 <= n <= 16 splat(float) splat(int32)      + - * / on Floats, + - & | on Ints, shift_left<n>(Ints), shift_right<n> (logical)
//   shift_right_signed<n>(Ints)
//   fma(a, b, c) rounded once      exact_fma(a, b, c)   the same where neither product nor sum needs rounding
//   min(a, b) max(a, b)            a < b ? a : b, a > b ? a : b: the second operand where either is NaN; max on Ints too
//   select_less(a, b, x, y)        a < b ? x : y                  keep_first(v, n, rest)   lanes < n from v, the others from rest
//   rint(v)                        to nearest even, |v| < 2^22 or NaN
//   to_ints(v)                     of integral floats             to_floats(i)   nearest even
//   bits(v) from_bits(i)           the same 32 bits
//   reduce_add(Floats)             halving: lane j += j + 8, then 4, 2, 1; reduce_max(Floats) without NaN; reduce_add, reduce_max of Ints
//   load_f16(u16*) load_bf16(u16*) widened exactly                load_bf16_pairs(u16*, even, odd)   32 values, the even and the odd ones
//   store_bf16(u16*, v)            nearest even, NaN stays NaN    store_i8(i8*, Ints)   low byte of each lane     load_u8(u8*)   16 bytes
//   widened prefetch(p)                    into L1; prefetch_far(p): into L2; prefetch_write(p): into L1, to be written
// and for the integer products of linear_impl.h:
//   dot4<bits>(acc, Bytes w, Ints a)   acc[c] += sum over j of w[4 c + j] (unsigned, of so many bits) * a.byte[j] (signed), exact; where
//   kShortQuads<bits> is not 0 in int16 lanes, two a channel: only so many products fit, then fold(sums, acc) adds both to int32 sums
//   load_quad(i8*)                 4 bytes in all lanes
//   pair(lo, hi)                   low 16 bits of each, as int16 pairs; dot2(acc, p, q): acc += p.lo * q.lo + p.hi * q.hi;
//   both_low(p), both_high(p): one half of each pair in both; load_i8_pairs(i8*): 32 bytes to 16 pairs low_nibbles, high_nibbles(Bytes);
//   high_in_place(Bytes): 16 times the high ones; or_bits<from, mask>(codes, plane): codes | (plane's bit `from` moved to bit 4, and its
//   neighbours) & mask
#pragma once
// GCC 12 takes its own _mm512_undefined_* for a mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace qwenbox {
namespace {

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};
struct Bytes {
  __m512i v;
};

// Rows by blocks of 16 channels that a product keeps in registers: of dense weights; of integers, where sums are all that is kept, or also
// totals or accumulators.
constexpr int kTileRows = 4, kDenseRows = 4, kDenseBlocks = 4, kSumRows = 6, kSumBlocks = 4, kTotalRows = 3, kTotalBlocks = 4;
constexpr bool kKeepAccumulators = true;  // in registers, between the 32-blocks of a group
constexpr int kUnrolledSums = 8;          // integer sums of a group that follow one another in the code
// So many rows are multiplied from packed codes, in tiles of so many rows by blocks: of one row, of one where other sums stand
// beside those of a run, of more.
constexpr int kFewRows = 8, kPackedRows = 8, kPackedBlocks = 4, kPackedBlocksBeside = 4, kPackedBlocksMore = 2;
// Whether they multiply low nibbles before high ones: half the sums at once, where registers are few; and whether high nibbles of 4-bit
// codes stay where they lie, as 16 times the code.
constexpr bool kSplitNibbles = false, kHighInPlace = false;
// Bytes between a read of codes and their prefetch into L2 and, unless 0, into L1, which is more than a tile skips; and into L2 where they
// are read in the order in which they lie, 0: as all others.
constexpr int kAhead = 8192, kNear = 4608, kAheadInOrder = 0;

QWENBOX_INLINE __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }

QWENBOX_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
QWENBOX_INLINE Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
QWENBOX_INLINE Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
QWENBOX_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
QWENBOX_INLINE void store(int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }
QWENBOX_INLINE void store(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
QWENBOX_INLINE Floats load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
QWENBOX_INLINE void store_first(float* p, Floats a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
QWENBOX_INLINE Floats splat(float a) { return {_mm512_set1_ps(a)}; }
QWENBOX_INLINE Ints splat(int32_t a) { return {_mm512_set1_epi32(a)}; }

QWENBOX_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QWENBOX_INLINE Floats exact_fma(Floats a, Floats b, Floats c) { return fma(a, b, c); }
QWENBOX_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
QWENBOX_INLINE Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
QWENBOX_INLINE Floats keep_first(Floats a, int n, Floats rest) { return {_mm512_mask_blend_ps(first_lanes(n), rest.v, a.v)}; }
QWENBOX_INLINE Floats rint(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

QWENBOX_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
QWENBOX_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
QWENBOX_INLINE Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
QWENBOX_INLINE Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
QWENBOX_INLINE Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int n>
QWENBOX_INLINE Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
QWENBOX_INLINE Ints shift_right(Ints a) {
  return {_mm512_srli_epi32(a.v, n)};
}
template <int n>
QWENBOX_INLINE Ints shift_right_signed(Ints a) {
  return {_mm512_srai_epi32(a.v, n)};
}
QWENBOX_INLINE Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
QWENBOX_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
QWENBOX_INLINE Ints bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
QWENBOX_INLINE Floats from_bits(Ints a) { return {_mm512_castsi512_ps(a.v)}; }

QWENBOX_INLINE float reduce_add(Floats a) {
  __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
QWENBOX_INLINE float reduce_max(Floats a) { return _mm512_reduce_max_ps(a.v); }
QWENBOX_INLINE int32_t reduce_add(Ints a) { return _mm512_reduce_add_epi32(a.v); }
QWENBOX_INLINE int32_t reduce_max(Ints a) { return _mm512_reduce_max_epi32(a.v); }

QWENBOX_INLINE Floats load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
QWENBOX_INLINE Floats load_bf16(const uint16_t* p) {
  return from_bits({_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)});
}
QWENBOX_INLINE void load_bf16_pairs(const uint16_t* p, Floats& even, Floats& odd) {
  __m512i both = _mm512_loadu_si512(p);
  even = from_bits({_mm512_slli_epi32(both, 16)});
  odd = from_bits({_mm512_and_si512(both, _mm512_set1_epi32(int32_t(0xFFFF0000u)))});
}
QWENBOX_INLINE void store_bf16(uint16_t* p, Floats a) {
  __m512i b = _mm512_castps_si512(a.v), upper = _mm512_srli_epi32(b, 16);
  __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7FFF)), odd), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(rounded));
}
QWENBOX_INLINE void store_i8(int8_t* p, Ints a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
QWENBOX_INLINE Ints load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
QWENBOX_INLINE Ints load_i16(const int16_t* p) { return {_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
QWENBOX_INLINE void prefetch(const void* p) { QWENBOX_FETCH(__asm__ volatile("prefetcht0 %0" : : "m"(*(const char*)p))); }
QWENBOX_INLINE void prefetch_write(const void* p) { QWENBOX_FETCH(__asm__ volatile("prefetchw %0" : : "m"(*(const char*)p))); }
QWENBOX_INLINE void prefetch_far(const void* p) { QWENBOX_FETCH(_mm_prefetch((const char*)p, _MM_HINT_T1)); }

template <int bits>
constexpr int kShortQuads = 0;
// Spelled in assembly: GCC 12 copies the accumulators of the intrinsics and spills the copies.
template <int bits>
QWENBOX_INLINE Ints dot4(Ints acc, Bytes w, Ints a) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(a.v));
  return acc;
}
// Keeps GCC from loading or computing it again for every use.
QWENBOX_INLINE Bytes hold(Bytes a) {
  __asm__("" : "+v"(a.v));
  return a;
}
// Made anew for each accumulator: GCC would copy a register, and copies that the processor does not rename away take the products' ports.
QWENBOX_INLINE Ints zeros() {
  Ints z;
  __asm__ volatile("vpxord %0, %0, %0" : "=v"(z.v));
  return z;
}
QWENBOX_INLINE Ints spread_lane(const int32_t* p) {
  Ints lanes;
  __asm__ volatile("vpbroadcastd %1, %0" : "=v"(lanes.v) : "m"(*p));
  return lanes;
}
QWENBOX_INLINE Ints fold(Ints sums, Ints acc) { return sums + acc; }
QWENBOX_INLINE Ints load_quad(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return splat(quad);
}
QWENBOX_INLINE Ints pair(Ints lo, Ints hi) {
  const __m512i low_words_up = _mm512_set4_epi32(0x0D0C0D0C, 0x09080908, 0x05040504, 0x01000100);
  return {_mm512_mask_shuffle_epi8(lo.v, 0xCCCCCCCCCCCCCCCCull, hi.v, low_words_up)};
}
QWENBOX_INLINE Ints both_low(Ints p) { return pair(p, p); }
QWENBOX_INLINE Ints both_high(Ints p) { return pair(shift_right<16>(p), shift_right<16>(p)); }
QWENBOX_INLINE Ints dot2(Ints acc, Ints p, Ints q) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(p.v), "vm"(q.v));
  return acc;
}
QWENBOX_INLINE Ints load_i8_pairs(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p))}; }
QWENBOX_INLINE Bytes low_nibbles(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
QWENBOX_INLINE Bytes high_in_place(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(int8_t(0xF0)))}; }
QWENBOX_INLINE Bytes high_nibbles(Bytes a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
template <int from, int mask>
QWENBOX_INLINE Bytes or_bits(Bytes codes, Bytes plane) {
  __m512i moved = from <= 4 ? _mm512_slli_epi16(plane.v, from <= 4 ? 4 - from : 0) : _mm512_srli_epi16(plane.v, from > 4 ? from - 4 : 0);
  return {_mm512_ternarylogic_epi32(codes.v, moved, _mm512_set1_epi8(mask), 0xF8)};  // a | (b & c)
}

}  // namespace
}  // namespace qwenbox
