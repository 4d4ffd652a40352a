// Where things stand inside a panel of a packed weight: 64 channels, groups of 128 inputs ascending, every part a multiple of 64 bytes.
//
// f32, f16, bf16: [k][64 channels].
// Others: units of one group, or of two where a raw block is 256 inputs: {codes, sub-scales} a group, then the unit's scales. Codes of a
// group:
//   nibbles   [t 0..1][r 0..7][64 channels][4]: byte j = input 64 t + 4 r + j in the low nibble, 64 t + 4 (r + 8) + j in the high one (an
//   AMX tile each) fifth bit [t][2 planes][64][4]: bit r of plane p = bit 4 of input 64 t + 4 (r + 8 p) + j two bits  [t][4 planes][64][4]:
//   bits 2 i of plane p = bits 4 and 5 of input 64 t + 4 (4 p + i) + j bytes     [32][64][4]: input 4 r + j, signed codes as code + 128
// Scales and sub-scales:
//   q4_0 q5_0 q8_0   d fp16 [4 blocks][64]        q4_1   d, then m, the same
//   q4_k q5_k        sc int8 [2][64][2 blocks], m int8 the same; a unit: d fp16 [64], dmin fp16 [64]
//   q6_k             sc int8 [4][64][2 blocks]; a unit: d fp16 [64]
//   int4 uint8       s fp16 [64], -z int16 [64]   int8   s fp16 [64]
//   int4_64          -z int8 [64][2 blocks]; s fp16 [2][64]
//   int4_32          -z int8 [2][64][2 blocks]; s fp16 [4][64]
#pragma once
#include <type_traits>

#include "kernels.h"

namespace qwenbox {
namespace {  // the variants must not share instantiations

struct Layout {
  int bits;         // of a code: 4, 5, 6, 8; of a dense value: 16, 32
  int zero_point;   // of the unsigned code, where it is the same everywhere
  int sub_bytes;    // sub-scales of a group
  int unit_groups;  // groups that share the unit's scales
  int scale_bytes;  // scales of a unit
  constexpr int code_bytes() const { return bits * kGroup * kPanel / 8; }
  constexpr int group_bytes() const { return code_bytes() + sub_bytes; }
  constexpr int unit_bytes() const { return unit_groups * group_bytes() + scale_bytes; }
};

constexpr bool is_dense(Kind kind) { return kind == Kind::f32 || kind == Kind::f16 || kind == Kind::bf16; }

// Blocks of a group that have fp16 scales of their own.
constexpr int blocks_of(Kind kind) {
  switch (kind) {
    case Kind::q4_0:
    case Kind::q4_1:
    case Kind::q5_0:
    case Kind::q8_0:
    case Kind::int4_32:
      return 4;
    case Kind::int4_64:
      return 2;
    default:
      return 1;
  }
}
// Blocks of group g that a row of k inputs has.
constexpr int blocks_left(Kind kind, int k, int g) {
  const int inputs = kGroup / blocks_of(kind), left = (k - g * kGroup + inputs - 1) / inputs;
  return left < blocks_of(kind) ? left : blocks_of(kind);
}
// Zero points of their own.
constexpr bool has_zeros(Kind kind) { return kind == Kind::int4 || kind == Kind::int4_64 || kind == Kind::int4_32 || kind == Kind::uint8; }

constexpr Layout layout_of(Kind kind) {
  switch (kind) {
    case Kind::f32:
      return {32, 0, 0, 1, 0};
    case Kind::f16:
    case Kind::bf16:
      return {16, 0, 0, 1, 0};
    case Kind::q4_0:
      return {4, 8, 0, 1, 512};
    case Kind::q4_1:
      return {4, 0, 0, 1, 1024};
    case Kind::q5_0:
      return {5, 16, 0, 1, 512};
    case Kind::q8_0:
      return {8, 128, 0, 1, 512};
    case Kind::q4_k:
      return {4, 8, 512, 2, 256};
    case Kind::q5_k:
      return {5, 16, 512, 2, 256};
    case Kind::q6_k:
      return {6, 32, 512, 2, 128};
    case Kind::int4:
      return {4, 0, 0, 1, 256};
    case Kind::int8:
      return {8, 128, 0, 1, 128};
    case Kind::int4_64:
      return {4, 0, 128, 1, 256};
    case Kind::int4_32:
      return {4, 0, 256, 1, 512};
    case Kind::uint8:
      return {8, 0, 0, 1, 256};
  }
  return {};
}

// f(the kind as a constant).
template <class F>
inline void with_kind(Kind kind, const F& f) {
  switch (kind) {
    case Kind::f32:
      return f(std::integral_constant<Kind, Kind::f32>());
    case Kind::f16:
      return f(std::integral_constant<Kind, Kind::f16>());
    case Kind::bf16:
      return f(std::integral_constant<Kind, Kind::bf16>());
    case Kind::q4_0:
      return f(std::integral_constant<Kind, Kind::q4_0>());
    case Kind::q4_1:
      return f(std::integral_constant<Kind, Kind::q4_1>());
    case Kind::q5_0:
      return f(std::integral_constant<Kind, Kind::q5_0>());
    case Kind::q8_0:
      return f(std::integral_constant<Kind, Kind::q8_0>());
    case Kind::q4_k:
      return f(std::integral_constant<Kind, Kind::q4_k>());
    case Kind::q5_k:
      return f(std::integral_constant<Kind, Kind::q5_k>());
    case Kind::q6_k:
      return f(std::integral_constant<Kind, Kind::q6_k>());
    case Kind::int4:
      return f(std::integral_constant<Kind, Kind::int4>());
    case Kind::int8:
      return f(std::integral_constant<Kind, Kind::int8>());
    case Kind::int4_64:
      return f(std::integral_constant<Kind, Kind::int4_64>());
    case Kind::int4_32:
      return f(std::integral_constant<Kind, Kind::int4_32>());
    case Kind::uint8:
      return f(std::integral_constant<Kind, Kind::uint8>());
  }
}

// The codes of group g of a panel; its sub-scales follow. The unit's scales stand at unit_scales().
constexpr size_t group_offset(const Layout& l, int g) {
  return size_t(g / l.unit_groups) * l.unit_bytes() + size_t(g % l.unit_groups) * l.group_bytes();
}
constexpr size_t scale_offset(const Layout& l, int g) {
  return size_t(g / l.unit_groups) * l.unit_bytes() + size_t(l.unit_groups) * l.group_bytes();
}

}  // namespace
}  // namespace qwenbox
