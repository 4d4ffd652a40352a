// AutoAWQ's matrices to our panels of int4, int4_64 and int4_32, without loss: words of eight outputs of one input become quads of inputs
// of one output.
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"
#include "transpose.h"

namespace qwenbox {
namespace {

constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // which output nibble i belongs to

// Four words of each of four inputs and of those 32 further on, to the quads of 32 outputs.
void pack_words(const Bytes16 (&low)[4], const Bytes16 (&high)[4], uint8_t* quads) {
  Words4 outputs[2][4];  // of even and odd nibbles, word by word
  for (int odd = 0; odd < 2; ++odd) {
    Bytes16 joined[4];  // an input in the low nibble, the other in the high one
    for (int j = 0; j < 4; ++j)
      joined[j] = odd ? high_nibbles16(low[j]) | (high[j] & 0xF0) : low_nibbles16(low[j]) | (Bytes16)((Shorts8)high[j] << 4 & 0xF0F0);
    const Shorts8 pairs[4] = {(Shorts8)interleave_low(joined[0], joined[1]), (Shorts8)interleave_low(joined[2], joined[3]),
                              (Shorts8)interleave_high(joined[0], joined[1]), (Shorts8)interleave_high(joined[2], joined[3])};
    for (int half = 0; half < 2; ++half) {
      outputs[odd][2 * half] = (Words4)interleave_low(pairs[2 * half], pairs[2 * half + 1]);
      outputs[odd][2 * half + 1] = (Words4)interleave_high(pairs[2 * half], pairs[2 * half + 1]);
    }
  }
  // Bytes of a word belong to outputs 0, 4, 1, 5 and 2, 6, 3, 7.
  for (int word = 0; word < 4; ++word) {
    const Words4 even = outputs[0][word], odd = outputs[1][word];
    write(quads + 32 * word, __builtin_shufflevector(even, odd, 0, 2, 4, 6));
    write(quads + 32 * word + 16, __builtin_shufflevector(even, odd, 1, 3, 5, 7));
  }
}

}  // namespace

bool pack_awq(Kind kind, int n, const uint32_t* qweight, const uint32_t* qzeros, const uint16_t* scales, uint8_t* dst, size_t panel_bytes) {
  constexpr int together = 16;  // words: a line of each input, two panels
  const Layout layout = layout_of(kind);
  const int words = n / 8, blocks = blocks_of(kind);
  for (int begin = 0; begin < words; begin += together) {
    const int count = std::min(together, words - begin);
    const auto panel = [&](int word) { return dst + size_t((begin + word) / 8) * panel_bytes; };
    if (n % kPanel && begin + count == words) std::memset(panel(count - 1), 0, size_t(layout.unit_bytes()));
    for (int t = 0; t < 2; ++t)
      for (int r = 0; r < 8; ++r)
        for (int word = 0; word < count; word += 4) {
          const size_t bytes = size_t(std::min(4, count - word)) * 4;
          Bytes16 low[4]{}, high[4]{};
          for (int j = 0; j < 4; ++j) {
            const uint32_t* const input = qweight + size_t(64 * t + 4 * r + j) * size_t(words) + size_t(begin + word);
            std::memcpy(&low[j], input, bytes);
            std::memcpy(&high[j], input + 32 * size_t(words), bytes);
          }
          pack_words(low, high, panel(word) + 256 * (8 * t + r) + 32 * (word % 8));
        }
    for (int j = 0; j < blocks; ++j)
      for (int word = 0; word < count; ++word) {
        uint8_t* const at = panel(word) + layout.code_bytes() + 16 * (word % 8);
        const size_t from = size_t(j) * size_t(words) + size_t(begin + word);
        std::memcpy(at + layout.sub_bytes + 128 * j, scales + 8 * from, 16);
        for (int i = 0; i < 8; ++i) {
          const int zero = int(qzeros[from] >> 4 * i & 15);
          if (blocks == 1)
            write(at + 128 + 2 * kOrder[i], int16_t(-zero));
          else
            at[128 * (j / 2) + 2 * kOrder[i] + j % 2] = uint8_t(-zero);
        }
      }
  }
  return finite_f16(reinterpret_cast<const uint8_t*>(scales), 2 * size_t(n) * size_t(blocks));
}

}  // namespace qwenbox
