// AutoAWQ's matrices to our int4 blocks, bit for bit as weights/awq.py does it in NumPy: words of eight outputs of one input become runs of
// 128 inputs of one output.
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "transpose.h"

namespace qwenbox {
namespace {

constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // which output nibble i belongs to
constexpr int kBlock = raw_block(Kind::int4).bytes;
constexpr int kTogether = 128;  // words of an input that are read together

using Inputs = uint8_t[kGroup][4 * kTogether + 64];  // of a group; a line more, or all rows would share a few sets of the first cache

// One group of 8 * `words` outputs, at most 32: byte j of a block holds input j and, in its high nibble, input j + 64. These two are joined
// first, so that bytes and not nibbles remain to be transposed.
void unpack_codes(const Inputs& in, int first, int words, uint8_t* out, size_t out_stride) {
  for (int begin = 0; begin < kGroup / 2; begin += 16) {
    uint8_t joined[2][16][16], columns[16][16];
    for (int j = begin; j < begin + 16; ++j) {
      const Bytes16 a = load16(in[j] + 4 * first), b = load16(in[j + kGroup / 2] + 4 * first);
      store16(joined[0][j - begin], (a & 15) | (Bytes16)((Shorts8)b << 4 & 0xF0F0));
      store16(joined[1][j - begin], (Bytes16)((Shorts8)a >> 4 & 0x0F0F) | (b & 0xF0));
    }
    for (int half = 0; half < 2; ++half) {
      transpose<Bytes16, 16>(joined[half][0], 16, columns[0], 16);
      for (int i = 0; i < 4 * words; ++i)
        std::memcpy(out + size_t(i / 4 * 8 + kOrder[i % 4 * 2 + half]) * out_stride + begin, columns[i], 16);
    }
  }
}

}  // namespace

void unpack_awq(const uint32_t* qweight, const uint32_t* qzeros, const uint16_t* scales, int n, int k, int first, int last, uint8_t* out) {
  const int groups = k / kGroup;
  const size_t words = size_t(n) / 8, row_bytes = raw_row_bytes(Kind::int4, k);
  alignas(64) static thread_local Inputs inputs;
  for (int begin = first; begin < last; begin += kTogether) {
    const int end = std::min(last, begin + kTogether);
    for (int g = 0; g < groups; ++g) {
      uint8_t* const blocks = out + size_t(g) * kBlock;
      const uint32_t* const from = qweight + size_t(g) * kGroup * words + size_t(begin);
      // Lines of the next group, of inputs and of outputs, lie too far apart for the processor to foresee.
      if (g + 1 < groups) {
        for (int j = 0; j < kGroup; ++j)
          for (int line = 0; line < end - begin; line += 16) __builtin_prefetch(from + size_t(j + kGroup) * words + line, 0, 2);
        for (int c = begin * 8; c < end * 8; ++c) __builtin_prefetch(blocks + size_t(c) * row_bytes + 2 * kBlock - 1, 1, 2);
      }
      for (int c = begin; c < end; ++c)
        for (int i = 0; i < 8; ++i) {
          const size_t row = size_t(c) * 8 + size_t(kOrder[i]);
          write(blocks + row * row_bytes, scales[size_t(g) * size_t(n) + row]);
          blocks[row * row_bytes + 2] = uint8_t(qzeros[size_t(g) * words + size_t(c)] >> 4 * i & 15);
        }
      for (int j = 0; j < kGroup; ++j) std::memcpy(inputs[j], from + size_t(j) * words, size_t(end - begin) * 4);
      for (int c = begin; c < end; c += 4)
        unpack_codes(inputs, c - begin, std::min(4, end - c), blocks + size_t(c) * 8 * row_bytes + 3, row_bytes);
    }
  }
}

}  // namespace qwenbox
