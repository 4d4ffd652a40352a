// Raw blocks as a file holds them: the codes and the scales of one group of one channel, by loops of fixed length that the compiler turns
// into the baseline's vectors. Layouts: GGUF's are ggml's block_q* structs, int4 and int8 are described in types.TENSOR_KINDS; all
// little-endian.
#pragma once
#include <cstring>
#include <limits>

#include "layout.h"

namespace qwenbox {
namespace {

struct RawBlock {
  int inputs, bytes;
};

constexpr RawBlock raw_block(Kind kind) {
  switch (kind) {
    case Kind::f32:
      return {1, 4};
    case Kind::f16:
    case Kind::bf16:
      return {1, 2};
    case Kind::q4_0:
      return {32, 18};
    case Kind::q4_1:
      return {32, 20};
    case Kind::q5_0:
      return {32, 22};
    case Kind::q8_0:
      return {32, 34};
    case Kind::q4_k:
      return {256, 144};
    case Kind::q5_k:
      return {256, 176};
    case Kind::q6_k:
      return {256, 210};
    case Kind::int4:
      return {128, 67};
    case Kind::int8:
      return {128, 130};
    case Kind::int4_64:
      return {64, 35};
    case Kind::int4_32:
      return {32, 19};
    case Kind::uint8:
      return {128, 131};
  }
  return {1, 0};
}

template <class T>
inline T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class T>
inline void write(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

inline float from_f16(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = uint32_t(h & 0x7FFF) << 13, bits;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  std::memcpy(&bits, &value, 4);
  if (magnitude >= 0x0F800000) bits = magnitude | 0x7F800000;
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Adding and taking away 1.5 * 2^23 rounds |x| < 2^22 to the nearest even integer.
constexpr float kRounder = 12582912.0f;
inline float nearest_integer(float value) { return (value + kRounder) - kRounder; }

// 0 <= value <= 65504 to fp16, nearest even.
inline uint16_t to_f16(float value) {
  uint32_t bits;
  if (value < 0x1p-14f) return uint16_t(nearest_integer(value * 0x1p24f));
  std::memcpy(&bits, &value, 4);
  return uint16_t(((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112 << 10));
}

// The steps of a group whose numbers reach so far below and above zero: 15 with a zero point (int4), or 127 to either side (int8). `step`
// is `half` as a float, or 1 where int8's is too small for fp16; `fits`: not too large for it, and a number.
struct GroupSteps {
  bool fits;
  uint16_t half;
  float step, zero;
};
inline GroupSteps group_steps(float below, float above, bool zeros) {
  constexpr float most_fp16 = 65504.0f, least_range = 1e-5f;
  const float range = below + above, widest = below > above ? below : above;
  const float scale = zeros ? (range > least_range ? range : least_range) / 15.0f : widest / 127.0f;
  if (!(scale <= most_fp16)) return {false, 0, 1, 0};
  const uint16_t half = to_f16(scale);
  const float step = half ? from_f16(half) : 1.0f, zero = zeros ? nearest_integer(below / step) : 0.0f;
  return {true, half, step, zero < 15.0f ? zero : 15.0f};
}

// The numbers that belong to the codes of one channel and group.
struct Numbers {
  uint16_t d[4], m[4];  // fp16, of each block; kinds of 256 inputs use the first
  uint8_t sub[8];       // q4_k q5_k: 4; q6_k: 8, signed
  uint8_t sub_min[4];   // q4_k q5_k
  uint8_t zeros[4];     // of each block
};

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Shorts8 __attribute__((vector_size(16)));
typedef uint64_t Longs2 __attribute__((vector_size(16)));

inline Bytes16 load16(const uint8_t* p) { return read<Bytes16>(p); }
inline void store16(uint8_t* p, Bytes16 v) { write(p, v); }
// Whether numbers with these bits of exponent, in `bytes`, a multiple of 16, are all finite: no exponent is all ones.
template <class Element, Element exponent>
inline bool finite(const uint8_t* p, size_t bytes) {
  typedef Element Vector __attribute__((vector_size(16)));
  constexpr Element magnitude = std::numeric_limits<Element>::max();
  Vector largest{};
  for (size_t i = 0; i < bytes; i += 16) {
    const Vector v = read<Vector>(p + i) & magnitude;
    largest = v > largest ? v : largest;
  }
  for (size_t i = 0; i < 16 / sizeof(Element); ++i)
    if (largest[i] >= exponent) return false;
  return true;
}
inline bool finite_f16(const uint8_t* p, size_t bytes) { return finite<int16_t, 0x7C00>(p, bytes); }
inline Bytes16 low_nibbles16(Bytes16 v) { return v & 15; }
inline Bytes16 high_nibbles16(Bytes16 v) { return (Bytes16)((Shorts8)v >> 4) & 15; }
// Bits n and n + 1 of each byte, at 4 and 5.
template <int n>
inline Bytes16 two_bits16(Bytes16 v) {
  return (n <= 4 ? (Bytes16)((Shorts8)v << (n <= 4 ? 4 - n : 0)) : (Bytes16)((Shorts8)v >> (n > 4 ? n - 4 : 0))) & 0x30;
}
// Bit i of the byte, in byte i at bit 4.
inline uint64_t spread_bits(uint8_t bits) {
  const uint64_t each = bits * 0x0101010101010101u & 0x8040201008040201u;
  return (each + 0x7F7F7F7F7F7F7F7Fu) >> 3 & 0x1010101010101010u;
}

// Group g of a row of `row_blocks` blocks: 128 unsigned codes and their numbers; what lies beyond the row is zero.
template <Kind kind>
inline void read_group(const uint8_t* __restrict row, int row_blocks, int g, uint8_t* __restrict codes, Numbers& numbers) {
  constexpr RawBlock block = raw_block(kind);
  constexpr int blocks = blocks_of(kind);
  if (block.inputs <= kGroup) {
    for (int j = 0; j < blocks; ++j, codes += block.inputs) {
      if (blocks * g + j >= row_blocks) {
        std::memset(codes, 0, size_t(block.inputs));
        numbers.d[j] = numbers.m[j] = numbers.zeros[j] = 0;
        continue;
      }
      const uint8_t* p = row + size_t(blocks * g + j) * block.bytes;
      numbers.d[j] = read<uint16_t>(p);
      p += 2;
      if (has_zeros(kind)) numbers.zeros[j] = *p++;
      if (layout_of(kind).bits == 8) {
        for (int i = 0; i < block.inputs; i += 16) store16(codes + i, load16(p + i) ^ uint8_t(layout_of(kind).zero_point));
        continue;
      }
      if (kind == Kind::q4_1) numbers.m[j] = read<uint16_t>(p), p += 2;
      if (kind != Kind::q5_0) {
        for (int i = 0; i < block.inputs / 2; i += 16) {
          store16(codes + i, low_nibbles16(load16(p + i)));
          store16(codes + block.inputs / 2 + i, high_nibbles16(load16(p + i)));
        }
        continue;
      }
      store16(codes, low_nibbles16(load16(p + 4)) | (Bytes16)Longs2{spread_bits(p[0]), spread_bits(p[1])});
      store16(codes + 16, high_nibbles16(load16(p + 4)) | (Bytes16)Longs2{spread_bits(p[2]), spread_bits(p[3])});
    }
    return;
  }
  const int half = g % 2;
  const uint8_t* p = row + size_t(g / 2) * block.bytes;
  if (kind == Kind::q6_k) {
    const uint8_t *low = p + 64 * half, *high = p + 128 + 32 * half;
    for (int i = 0; i < 32; i += 16) {
      const Bytes16 first = load16(low + i), second = load16(low + 32 + i), top = load16(high + i);
      store16(codes + i, low_nibbles16(first) | two_bits16<0>(top));
      store16(codes + 32 + i, low_nibbles16(second) | two_bits16<2>(top));
      store16(codes + 64 + i, high_nibbles16(first) | two_bits16<4>(top));
      store16(codes + 96 + i, high_nibbles16(second) | two_bits16<6>(top));
    }
    std::memcpy(numbers.sub, p + 192 + 8 * half, 8);
    numbers.d[0] = read<uint16_t>(p + 208);
    return;
  }
  numbers.d[0] = read<uint16_t>(p);
  numbers.m[0] = read<uint16_t>(p + 2);
  // Eight 6-bit scales and minima in 12 bytes: the first four of each stand in 4 bytes; those of the other four share their low halves.
  const uint32_t scales = read<uint32_t>(p + 4), minima = read<uint32_t>(p + 8), shared = read<uint32_t>(p + 12);
  write(numbers.sub, half ? (shared & 0x0F0F0F0F) | (scales >> 2 & 0x30303030) : scales & 0x3F3F3F3F);
  write(numbers.sub_min, half ? (shared >> 4 & 0x0F0F0F0F) | (minima >> 2 & 0x30303030) : minima & 0x3F3F3F3F);
  const uint8_t* nibbles = p + (kind == Kind::q5_k ? 48 : 16) + 64 * half;
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 32; i += 16) {
      const Bytes16 both = load16(nibbles + 32 * (j / 2) + i);
      Bytes16 code = j % 2 ? high_nibbles16(both) : low_nibbles16(both);
      if (kind == Kind::q5_k) code |= (Bytes16)((Shorts8)load16(p + 16 + i) >> (4 * half + j)) << 4 & 0x10;
      store16(codes + 32 * j + i, code);
    }
}

}  // namespace
}  // namespace qwenbox
