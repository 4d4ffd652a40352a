// pack_panels against its twin: the layout of layout.h spelled out a channel, a group and a code at a time. Bytes must agree. Prints
// "N passed, N failed".
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout.h"

using namespace qwenbox;

namespace {

// --- the twin ----------------------------------------------------------------------------------------------------

struct RawBlock {
  int inputs, bytes;
};

RawBlock raw_block(Kind kind) {
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
T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class T>
void write(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

// The 6-bit scale and minimum of sub-block j of a q4_k or q5_k block, from its 12 bytes.
void read_k_scales(const uint8_t* p, int j, uint8_t& scale, uint8_t& minimum) {
  scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
  minimum = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | (p[j] >> 6) << 4;
}

// One channel of one group: unsigned codes and the numbers that belong to them.
struct Group {
  uint8_t codes[kGroup];
  uint16_t d[4], m[4];  // fp16; K-quants and ours use the first
  int8_t sub[8], sub_min[4];
  int zeros[4];  // int4, uint8: the first
};

Group read_group(Kind kind, const uint8_t* row, int row_blocks, int g) {
  Group group{};
  uint8_t* codes = group.codes;
  auto block = raw_block(kind);
  if (kind == Kind::int4_64 || kind == Kind::int4_32) {
    const int blocks = kGroup / block.inputs, half = block.inputs / 2;
    for (int j = 0; j < blocks && blocks * g + j < row_blocks; ++j, codes += block.inputs) {
      const uint8_t* p = row + size_t(blocks * g + j) * block.bytes;
      group.d[j] = read<uint16_t>(p);
      group.zeros[j] = p[2];
      for (int i = 0; i < half; ++i) codes[i] = p[3 + i] & 15, codes[half + i] = p[3 + i] >> 4;
    }
    return group;
  }
  if (block.inputs == 32) {
    for (int j = 0; j < 4 && 4 * g + j < row_blocks; ++j, codes += 32) {
      const uint8_t* p = row + size_t(4 * g + j) * block.bytes;
      group.d[j] = read<uint16_t>(p);
      p += 2;
      if (kind == Kind::q8_0) {
        for (int i = 0; i < 32; ++i) codes[i] = p[i] ^ 0x80;
        continue;
      }
      if (kind == Kind::q4_1) group.m[j] = read<uint16_t>(p), p += 2;
      uint32_t fifth = 0;
      if (kind == Kind::q5_0) fifth = read<uint32_t>(p), p += 4;
      for (int i = 0; i < 16; ++i) {
        codes[i] = uint8_t((p[i] & 15) | (fifth >> i & 1) << 4);
        codes[i + 16] = uint8_t(p[i] >> 4 | (fifth >> (i + 16) & 1) << 4);
      }
    }
    return group;
  }
  if (block.inputs == 128) {
    const uint8_t* p = row + size_t(g) * block.bytes;
    group.d[0] = read<uint16_t>(p);
    if (kind == Kind::int8) {
      for (int i = 0; i < kGroup; ++i) codes[i] = p[2 + i] ^ 0x80;
      return group;
    }
    group.zeros[0] = p[2];
    if (kind == Kind::uint8) {
      std::memcpy(codes, p + 3, kGroup);
      return group;
    }
    for (int i = 0; i < 64; ++i) codes[i] = p[3 + i] & 15, codes[i + 64] = p[3 + i] >> 4;
    return group;
  }
  int half = g % 2;
  if (g / 2 >= row_blocks) return group;
  const uint8_t* p = row + size_t(g / 2) * block.bytes;
  if (kind == Kind::q6_k) {
    const uint8_t *low = p + 64 * half, *high = p + 128 + 32 * half;
    for (int i = 0; i < 32; ++i) {
      codes[i] = uint8_t((low[i] & 15) | (high[i] & 3) << 4);
      codes[i + 32] = uint8_t((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
      codes[i + 64] = uint8_t(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
      codes[i + 96] = uint8_t(low[i + 32] >> 4 | (high[i] >> 6) << 4);
    }
    std::memcpy(group.sub, p + 192 + 8 * half, 8);
    group.d[0] = read<uint16_t>(p + 208);
    return group;
  }
  group.d[0] = read<uint16_t>(p);
  group.m[0] = read<uint16_t>(p + 2);
  const uint8_t* fifth = kind == Kind::q5_k ? p + 16 : nullptr;
  const uint8_t* nibbles = p + (fifth ? 48 : 16) + 64 * half;
  for (int j = 0; j < 4; ++j) {
    uint8_t scale, minimum;
    read_k_scales(p + 4, 4 * half + j, scale, minimum);
    group.sub[j] = int8_t(scale), group.sub_min[j] = int8_t(minimum);
    for (int i = 0; i < 32; ++i) {
      int nibble = nibbles[32 * (j / 2) + i] >> 4 * (j % 2) & 15;
      codes[32 * j + i] = uint8_t(nibble | (fifth ? (fifth[i] >> (4 * half + j) & 1) << 4 : 0));
    }
  }
  return group;
}

// Codes of channel c to and from the packed form; quad q holds inputs 4 q .. 4 q + 3.
void pack_codes(int bits, const uint8_t* codes, int c, uint8_t* dst) {
  uint32_t quads[32];
  std::memcpy(quads, codes, sizeof quads);
  dst += 4 * c;
  if (bits == 8) {
    for (int q = 0; q < 32; ++q) write(dst + 256 * q, quads[q]);
    return;
  }
  for (int t = 0; t < 2; ++t) {
    const uint32_t* q = quads + 16 * t;
    for (int r = 0; r < 8; ++r) write(dst + 256 * (8 * t + r), (q[r] & 0x0F0F0F0F) | (q[r + 8] & 0x0F0F0F0F) << 4);
    uint8_t* planes = dst + 4096;
    if (bits == 5)
      for (int plane = 0; plane < 2; ++plane) {
        uint32_t word = 0;
        for (int r = 0; r < 8; ++r) word |= (q[8 * plane + r] >> 4 & 0x01010101) << r;
        write(planes + 256 * (2 * t + plane), word);
      }
    if (bits == 6)
      for (int plane = 0; plane < 4; ++plane) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= (q[4 * plane + i] >> 4 & 0x03030303) << 2 * i;
        write(planes + 256 * (4 * t + plane), word);
      }
  }
}

void pack_group(Kind kind, const Group& group, int c, uint8_t* codes, uint8_t* scales, bool first_of_unit) {
  const Layout layout = layout_of(kind);
  pack_codes(layout.bits, group.codes, c, codes);
  uint8_t* sub = codes + layout.code_bytes();
  switch (kind) {
    case Kind::q4_0:
    case Kind::q5_0:
    case Kind::q8_0:
    case Kind::q4_1:
      for (int j = 0; j < 4; ++j) write(scales + 2 * (64 * j + c), group.d[j]);
      if (kind == Kind::q4_1)
        for (int j = 0; j < 4; ++j) write(scales + 2 * (64 * (4 + j) + c), group.m[j]);
      return;
    case Kind::q4_k:
    case Kind::q5_k:
      for (int j = 0; j < 4; ++j) {
        write(sub + 128 * (j / 2) + 2 * c + j % 2, group.sub[j]);
        write(sub + 256 + 128 * (j / 2) + 2 * c + j % 2, group.sub_min[j]);
      }
      break;
    case Kind::q6_k:
      for (int j = 0; j < 8; ++j) write(sub + 128 * (j / 2) + 2 * c + j % 2, group.sub[j]);
      break;
    case Kind::int4_64:
    case Kind::int4_32:
      for (int j = 0; j < kGroup / raw_block(kind).inputs; ++j) {
        write(scales + 2 * (64 * j + c), group.d[j]);
        write(sub + 128 * (j / 2) + 2 * c + j % 2, int8_t(-group.zeros[j]));
      }
      return;
    default:
      break;
  }
  if (!first_of_unit) return;
  write(scales + 2 * c, group.d[0]);
  if (kind == Kind::q4_k || kind == Kind::q5_k) write(scales + 128 + 2 * c, group.m[0]);
  if (kind == Kind::int4 || kind == Kind::uint8) write(scales + 128 + 2 * c, int16_t(-group.zeros[0]));
}

void pack_dense(Kind kind, int n, int k, const uint8_t* raw, int panel, uint8_t* dst) {
  size_t size = size_t(raw_block(kind).bytes);
  std::memset(dst, 0, size_t(k) * kPanel * size);
  for (int c = 0; c < kPanel && panel * kPanel + c < n; ++c) {
    const uint8_t* row = raw + size_t(panel * kPanel + c) * k * size;
    for (int i = 0; i < k; ++i) std::memcpy(dst + (size_t(i) * kPanel + c) * size, row + i * size, size);
  }
}

void pack_slowly(Kind kind, int n, int k, const uint8_t* raw, uint8_t* dst) {
  const WeightLayout out = weight_layout(kind, n, k);
  const Layout layout = layout_of(kind);
  const size_t row_bytes = raw_row_bytes(kind, k);
  const int row_blocks = int(row_bytes / raw_block(kind).bytes);
  for (int panel = 0; panel < out.panels; ++panel) {
    uint8_t* base = dst + size_t(panel) * out.panel_bytes;
    if (is_dense(kind)) {
      pack_dense(kind, n, k, raw, panel, base);
      continue;
    }
    std::memset(base, 0, out.panel_bytes);
    for (int g = 0; g < out.groups; ++g)
      for (int c = 0; c < kPanel && panel * kPanel + c < n; ++c) {
        const uint8_t* row = raw + size_t(panel * kPanel + c) * row_bytes;
        pack_group(kind, read_group(kind, row, row_blocks, g), c, base + group_offset(layout, g), base + scale_offset(layout, g),
                   g % layout.unit_groups == 0);
      }
  }
}

// --- checks ------------------------------------------------------------------------------------------------------

const char* const kNames[] = {"f32",  "f16",  "bf16", "q4_0", "q4_1",    "q5_0",    "q8_0", "q4_k",
                              "q5_k", "q6_k", "int4", "int8", "int4_64", "int4_32", "uint8"};

}  // namespace

int main() {
  int passed = 0, failed = 0;
  std::mt19937 random_bits(20261122);
  for (int kind = 0; kind < kKinds; ++kind)
    for (int n : {1, 3, 63, 64, 65, 150})
      for (int k : {1, 31, 32, 96, 127, 128, 160, 256, 384, 520, 1024}) {
        const Kind code = Kind(kind);
        const WeightLayout layout = weight_layout(code, n, k);
        // Exactly as long as the rows are: the sanitizer sees a read behind the last one.
        std::vector<uint8_t> raw(raw_row_bytes(code, k) * size_t(n)), expected(layout.panel_bytes * size_t(layout.panels), 0xA5);
        std::vector<uint8_t> packed = expected;
        for (auto& byte : raw) byte = uint8_t(random_bits());
        pack_slowly(code, n, k, raw.data(), expected.data());
        pack_panels(code, n, k, raw.data(), layout.panels / 2, layout.panels, packed.data());
        pack_panels(code, n, k, raw.data(), 0, layout.panels / 2, packed.data());
        const bool good = packed == expected;
        (good ? passed : failed)++;
        if (!good) std::printf("FAILED %s %d x %d\n", kNames[kind], n, k);
      }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
