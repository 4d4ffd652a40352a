// Repacking raw blocks into panels, without loss, and reading rows back.
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"
#include "transpose.h"

namespace qwenbox {
namespace {

// Codes of a group, channel by channel, to the packed form; quad q of a channel holds inputs 4 q .. 4 q + 3.
template <int bits>
void pack_codes(const uint8_t (&codes)[kPanel][kGroup], uint8_t* dst) {
  if (bits == 8) {
    for (int c = 0; c < kPanel; c += 4)
      for (int q = 0; q < 32; q += 4) transpose<Words4, 4>(codes[c] + 4 * q, kGroup, dst + 256 * q + 4 * c, 256);
    return;
  }
  alignas(64) uint8_t quads[32][4 * kPanel];
  for (int c = 0; c < kPanel; c += 4)
    for (int q = 0; q < 32; q += 4) transpose<Words4, 4>(codes[c] + 4 * q, kGroup, quads[q] + 4 * c, 256);
  for (int t = 0; t < 2; ++t) {
    const auto* q = quads + 16 * t;
    uint8_t* planes = dst + 4096;
    for (int r = 0; r < 8; ++r)
      for (int i = 0; i < 256; i += 16)
        store16(dst + 256 * (8 * t + r) + i, (load16(q[r] + i) & 15) | (Bytes16)((Shorts8)load16(q[r + 8] + i) << 4 & 0xF0F0));
    if (bits == 5)
      for (int plane = 0; plane < 2; ++plane)
        for (int i = 0; i < 256; i += 16) {
          Shorts8 word{};
          for (int r = 0; r < 8; ++r) word |= ((Shorts8)load16(q[8 * plane + r] + i) >> 4 & 0x0101) << r;
          store16(planes + 256 * (2 * t + plane) + i, (Bytes16)word);
        }
    if (bits == 6)
      for (int plane = 0; plane < 4; ++plane)
        for (int i = 0; i < 256; i += 16) {
          Shorts8 word{};
          for (int r = 0; r < 4; ++r) word |= ((Shorts8)load16(q[4 * plane + r] + i) >> 4 & 0x0303) << 2 * r;
          store16(planes + 256 * (4 * t + plane) + i, (Bytes16)word);
        }
  }
}

void unpack_codes(int bits, const uint8_t* src, int c, uint8_t* codes) {
  src += 4 * c;
  for (int i = 0; i < 32; ++i) {
    int t = i / 16, r = i % 16;
    uint32_t quad;
    if (bits == 8) {
      quad = read<uint32_t>(src + 256 * i);
    } else {
      quad = read<uint32_t>(src + 256 * (8 * t + r % 8)) >> 4 * (r / 8) & 0x0F0F0F0F;
      const uint8_t* planes = src + 4096;
      if (bits == 5) quad |= (read<uint32_t>(planes + 256 * (2 * t + r / 8)) >> r % 8 & 0x01010101) << 4;
      if (bits == 6) quad |= (read<uint32_t>(planes + 256 * (4 * t + r / 4)) >> 2 * (r % 4) & 0x03030303) << 4;
    }
    std::memcpy(codes + 4 * i, &quad, 4);
  }
}

// The numbers of channel c to their places.
template <Kind kind>
inline void pack_numbers(const Numbers& numbers, int c, uint8_t* sub, uint8_t* scales, bool first_of_unit) {
  constexpr RawBlock block = raw_block(kind);
  constexpr int blocks = blocks_of(kind);
  if (block.inputs <= kGroup) {
    for (int j = 0; j < blocks; ++j) write(scales + 2 * (64 * j + c), numbers.d[j]);
    if (kind == Kind::q4_1)
      for (int j = 0; j < 4; ++j) write(scales + 2 * (64 * (4 + j) + c), numbers.m[j]);
    if (has_zeros(kind) && blocks == 1) write(scales + 128 + 2 * c, int16_t(-numbers.zeros[0]));
    if (has_zeros(kind) && blocks > 1)
      for (int j = 0; j < blocks; ++j) sub[128 * (j / 2) + 2 * c + j % 2] = uint8_t(-numbers.zeros[j]);
    return;
  }
  const int pairs = kind == Kind::q6_k ? 4 : 2;
  for (int j = 0; j < pairs; ++j) std::memcpy(sub + 128 * j + 2 * c, numbers.sub + 2 * j, 2);
  if (kind != Kind::q6_k)
    for (int j = 0; j < pairs; ++j) std::memcpy(sub + 256 + 128 * j + 2 * c, numbers.sub_min + 2 * j, 2);
  if (!first_of_unit) return;
  write(scales + 2 * c, numbers.d[0]);
  if (kind == Kind::q4_k || kind == Kind::q5_k) write(scales + 128 + 2 * c, numbers.m[0]);
}

template <Kind kind>
bool pack_quantised(int channels, int groups, int row_blocks, const uint8_t* rows, size_t row_bytes, uint8_t* dst) {
  constexpr Layout layout = layout_of(kind);
  alignas(64) uint8_t codes[kPanel][kGroup];
  std::memset(codes[0] + channels * kGroup, 0, size_t(kPanel - channels) * kGroup);
  bool good = true;
  for (int g = 0; g < groups; ++g) {
    uint8_t *group = dst + group_offset(layout, g), *scales = dst + scale_offset(layout, g);
    for (int c = 0; c < channels; ++c) {
      Numbers numbers;
      read_group<kind>(rows + size_t(c) * row_bytes, row_blocks, g, codes[c], numbers);
      pack_numbers<kind>(numbers, c, group + layout.code_bytes(), scales, g % layout.unit_groups == 0);
    }
    pack_codes<layout.bits>(codes, group);
    if (g % layout.unit_groups == 0)
      good &= finite_f16(scales, size_t(has_zeros(kind) ? 2 * kPanel * blocks_of(kind) : layout.scale_bytes));
  }
  return good;
}

// Rows of plain numbers to [k][64 channels]; a cache line of each of the block's channels at a time.
template <class Vector, class Element, Element exponent>
bool pack_dense(int channels, int k, const uint8_t* rows, uint8_t* dst) {
  constexpr int size = sizeof(Element), square = 16 / size, line = 64 / size;
  const size_t row_bytes = size_t(k) * size, out_bytes = size_t(kPanel) * size;
  bool good = true;
  const auto one = [&](int c, int i) {
    std::memcpy(dst + i * out_bytes + size_t(c) * size, rows + c * row_bytes + size_t(i) * size, size);
  };
  const int whole = channels / square * square;
  for (int begin = 0; begin < k; begin += line) {
    const int end = std::min(k, begin + line);
    for (int c = 0; c < whole; c += square) {
      int i = begin;
      for (; i + square <= end; i += square)
        transpose<Vector, square>(rows + c * row_bytes + size_t(i) * size, row_bytes, dst + i * out_bytes + size_t(c) * size, out_bytes);
      for (; i < end; ++i)
        for (int j = 0; j < square; ++j) one(c + j, i);
    }
    for (int c = whole; c < channels; ++c)
      for (int i = begin; i < end; ++i) one(c, i);
    good &= finite<Element, exponent>(dst + begin * out_bytes, size_t(end - begin) * out_bytes);
  }
  return good;
}

}  // namespace

size_t raw_row_bytes(Kind kind, int k) {
  auto block = raw_block(kind);
  return size_t((k + block.inputs - 1) / block.inputs) * block.bytes;
}

WeightLayout weight_layout(Kind kind, int n, int k) {
  WeightLayout out{0, (n + kPanel - 1) / kPanel, (k + kGroup - 1) / kGroup};
  const Layout layout = layout_of(kind);
  if (is_dense(kind))
    out.panel_bytes = size_t(k) * kPanel * layout.bits / 8;
  else
    out.panel_bytes = size_t((out.groups + layout.unit_groups - 1) / layout.unit_groups) * layout.unit_bytes();
  return out;
}

bool pack_panels(Kind kind, int n, int k, const uint8_t* raw, int panel_begin, int panel_end, uint8_t* dst) {
  const WeightLayout out = weight_layout(kind, n, k);
  const Layout layout = layout_of(kind);
  const size_t row_bytes = raw_row_bytes(kind, k);
  const int row_blocks = int(row_bytes / raw_block(kind).bytes);
  bool good = true;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* rows = raw + size_t(panel) * kPanel * row_bytes;
    uint8_t* base = dst + size_t(panel) * out.panel_bytes;
    const int channels = std::min(kPanel, n - panel * kPanel);
    if (channels < kPanel || out.groups % layout.unit_groups) std::memset(base, 0, out.panel_bytes);  // what nothing below writes
    with_kind(kind, [&](auto constant) {
      if constexpr (constant == Kind::f32)
        good &= pack_dense<Words4, int32_t, 0x7F800000>(channels, k, rows, base);
      else if constexpr (is_dense(constant))
        good &= pack_dense<Shorts8, int16_t, constant == Kind::f16 ? 0x7C00 : 0x7F80>(channels, k, rows, base);
      else
        good &= pack_quantised<constant>(channels, out.groups, row_blocks, rows, row_bytes, base);
    });
  }
  return good;
}

void unpack_row(const Weight& w, int row, float* out) {
  const Layout layout = layout_of(w.kind);
  const uint8_t* base = w.data + size_t(row / kPanel) * w.panel_bytes;
  const int c = row % kPanel;
  if (is_dense(w.kind)) {
    for (int i = 0; i < w.k; ++i) {
      size_t at = size_t(i) * kPanel + c;
      if (w.kind == Kind::f32)
        out[i] = read<float>(base + 4 * at);
      else if (w.kind == Kind::f16)
        out[i] = from_f16(read<uint16_t>(base + 2 * at));
      else {
        uint32_t bits = uint32_t(read<uint16_t>(base + 2 * at)) << 16;
        std::memcpy(out + i, &bits, 4);
      }
    }
    return;
  }
  for (int g = 0; g < w.groups; ++g, out += kGroup) {
    const uint8_t *group = base + group_offset(layout, g), *sub = group + layout.code_bytes(), *scales = base + scale_offset(layout, g);
    auto f16 = [&](int line) { return from_f16(read<uint16_t>(scales + 2 * (64 * line + c))); };
    auto sub_scale = [&](int table, int j) { return float(int8_t(sub[256 * table + 128 * (j / 2) + 2 * c + j % 2])); };
    uint8_t codes[kGroup];
    unpack_codes(layout.bits, group, c, codes);
    const int count = w.k - g * kGroup < kGroup ? w.k - g * kGroup : kGroup;
    for (int i = 0; i < count; ++i) {
      float q = float(codes[i] - layout.zero_point);
      switch (w.kind) {
        case Kind::q4_1:
          out[i] = f16(i / 32) * q + f16(4 + i / 32);
          break;
        case Kind::q4_k:
        case Kind::q5_k:
          out[i] = (f16(0) * sub_scale(0, i / 32)) * float(codes[i]) - f16(1) * sub_scale(1, i / 32);
          break;
        case Kind::q6_k:
          out[i] = (f16(0) * sub_scale(0, i / 16)) * q;
          break;
        case Kind::int4:
        case Kind::uint8:
          out[i] = float(codes[i] + read<int16_t>(scales + 128 + 2 * c)) * f16(0);
          break;
        case Kind::int4_64:
        case Kind::int4_32: {
          const int j = i * blocks_of(w.kind) / kGroup;
          out[i] = (float(codes[i]) + sub_scale(0, j)) * f16(j);
          break;
        }
        case Kind::int8:
          out[i] = q * f16(0);
          break;
        default:
          out[i] = f16(i / 32) * q;
          break;
      }
    }
  }
}

}  // namespace qwenbox
