#include "words.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "layout.h"
#include "transpose.h"

namespace qwenbox {
namespace {

// Four nibbles in each half of a word to four bytes: those of the upper half become high nibbles.
inline uint32_t joined(uint32_t word) {
  uint32_t swapped = (word ^ word >> 8) & 0x0000FF00;
  word ^= swapped ^ swapped << 8;
  swapped = (word ^ word >> 4) & 0x00F000F0;
  return word ^ swapped ^ swapped << 4;
}

// Words of a group of `channels` outputs, a row each 32 / bits inputs.
void pack_codes(int bits, const uint32_t* words, size_t stride, int channels, uint8_t* dst) {
  if (bits == 8) {
    for (int r = 0; r < 32; ++r) std::memcpy(dst + 256 * r, words + size_t(r) * stride, 4 * size_t(channels));
    return;
  }
  for (int t = 0; t < 2; ++t)
    for (int r = 0; r < 4; ++r) {
      const uint32_t *low = words + size_t(8 * t + r) * stride, *high = low + 4 * stride;
      uint8_t* const out = dst + 256 * (8 * t + 2 * r);
      for (int c = 0; c < channels; ++c) {
        write(out + 4 * c, joined((low[c] & 0xFFFF) | high[c] << 16));
        write(out + 256 + 4 * c, joined(low[c] >> 16 | (high[c] & 0xFFFF0000)));
      }
    }
}

// The group's codes and numbers of one panel.
bool pack_group(Kind kind, int n, int k, int panel, int group, const uint32_t* words, size_t stride, const WordNumbers& numbers,
                uint8_t* dst) {
  const Layout layout = layout_of(kind);
  const int bits = layout.bits, first = panel * kPanel, channels = std::min(kPanel, n - first), blocks = blocks_of(kind), per = 32 / bits;
  if (channels < kPanel) std::memset(dst, 0, size_t(layout.unit_bytes()));
  pack_codes(bits, words, stride, channels, dst);
  uint8_t *const sub = dst + layout.code_bytes(), *const scales = sub + layout.sub_bytes;
  for (int j = 0; j < blocks; ++j) {
    const size_t from = size_t(group * kGroup + j * (kGroup / blocks)) / size_t(k / numbers.groups);
    for (int c = 0; c < channels; ++c) {
      const size_t output = size_t(first + c), groups = size_t(numbers.groups);
      write(scales + 2 * (64 * j + c), numbers.scales[numbers.by_rows ? output * groups + from : from * size_t(n) + output]);
      if (!has_zeros(kind)) continue;
      int zero = 1 << (bits - 1);
      if (numbers.zeros) {
        const size_t word = output / size_t(per);
        const uint32_t stored = numbers.zeros[numbers.by_rows ? word * groups + from : from * size_t(n / per) + word] + numbers.plus;
        zero = int(stored >> bits * (int(output) % per) & ((1u << bits) - 1));
      }
      if (blocks == 1)
        write(scales + 128 + 2 * c, int16_t(-zero));
      else
        sub[128 * (j / 2) + 2 * c + j % 2] = uint8_t(-zero);
    }
  }
  return finite_f16(scales, size_t(2 * kPanel * blocks));
}

}  // namespace

int word_bits(Kind kind) {
  switch (kind) {
    case Kind::int4:
    case Kind::int4_64:
    case Kind::int4_32:
      return 4;
    case Kind::int8:
    case Kind::q8_0:
    case Kind::uint8:
      return 8;
    default:
      return 0;
  }
}

bool pack_word_group(Kind kind, int n, int k, int group, const uint32_t* words, const WordNumbers& numbers, uint8_t* dst,
                     size_t panel_bytes) {
  bool good = true;
  for (int panel = 0; panel * kPanel < n; ++panel)
    good &= pack_group(kind, n, k, panel, group, words + panel * kPanel, size_t(n), numbers, dst + size_t(panel) * panel_bytes);
  return good;
}

bool pack_word_panel(Kind kind, int n, int k, int panel, const uint32_t* words, const WordNumbers& numbers, uint8_t* dst) {
  const int of_group = kGroup * word_bits(kind) / 32, channels = std::min(kPanel, n - panel * kPanel);
  const size_t row_bytes = size_t(k) * size_t(word_bits(kind)) / 8;
  alignas(64) uint32_t turned[32][kPanel];
  bool good = true;
  for (int g = 0; g * kGroup < k; ++g) {
    const uint8_t* const from = reinterpret_cast<const uint8_t*>(words + g * of_group);
    const int whole = channels / 4 * 4;
    for (int i = 0; i < of_group; i += 4) {
      for (int c = 0; c < whole; c += 4)
        transpose<Words4, 4>(from + size_t(c) * row_bytes + 4 * i, row_bytes, reinterpret_cast<uint8_t*>(&turned[i][c]), sizeof turned[0]);
      for (int c = whole; c < channels; ++c)
        for (int j = 0; j < 4; ++j) turned[i + j][c] = read<uint32_t>(from + size_t(c) * row_bytes + 4 * size_t(i + j));
    }
    good &= pack_group(kind, n, k, panel, g, turned[0], kPanel, numbers, dst + size_t(g) * size_t(layout_of(kind).unit_bytes()));
  }
  return good;
}

}  // namespace qwenbox
