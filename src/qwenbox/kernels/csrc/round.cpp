// Raw blocks of any kind to our own int8 and int4 blocks or to bf16, bit for bit as quants.round_tensor does it in NumPy: one group of 128
// inputs at a time, made plain numbers here and rounded in the variant's vectors (round_impl.h).
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"

namespace qwenbox {
namespace {

// The numbers of group g of a quantised row, in the order of operations of the gguf package.
template <Kind kind>
inline void group_floats(const uint8_t* row, int row_blocks, int g, float* __restrict out) {
  uint8_t codes[kGroup];
  Numbers numbers{};
  read_group<kind>(row, row_blocks, g, codes, numbers);
  constexpr int inputs = raw_block(kind).inputs, run = inputs == 256 ? kind == Kind::q6_k ? 16 : 32 : inputs;
  constexpr bool minima = kind == Kind::q4_k || kind == Kind::q5_k;
  for (int j = 0; j < kGroup / run; ++j) {
    const int zero = has_zeros(kind) ? numbers.zeros[j] : minima ? 0 : layout_of(kind).zero_point;
    float scale = from_f16(numbers.d[inputs == 256 ? 0 : j]), offset = 0;
    if (inputs == 256) scale *= kind == Kind::q6_k ? float(int8_t(numbers.sub[j])) : float(numbers.sub[j]);
    if (kind == Kind::q4_1) offset = from_f16(numbers.m[j]);
    if (minima) offset = from_f16(numbers.m[0]) * float(numbers.sub_min[j]);
    for (int i = j * run; i < (j + 1) * run; ++i) {
      const float product = float(int(codes[i]) - zero) * scale;
      out[i] = kind == Kind::q4_1 ? product + offset : minima ? product - offset : product;
    }
  }
}

template <Kind kind>
Rounding round_kind(const Kernels& kernels, Kind to, int rows, int k, const uint8_t* raw, uint8_t* out) {
  constexpr Kind plain = is_dense(kind) ? kind : Kind::f32;
  constexpr size_t size = size_t(layout_of(plain).bits) / 8;
  const size_t row_bytes = raw_row_bytes(kind, k), out_bytes = raw_row_bytes(to, k);
  const size_t group_bytes = to == Kind::bf16 ? 2 * kGroup : size_t(raw_block(to).bytes);
  const int groups = (k + kGroup - 1) / kGroup;
  alignas(64) float values[kGroup];
  alignas(64) uint8_t block[2 * kGroup];
  uint8_t* const numbers = reinterpret_cast<uint8_t*>(values);
  for (int r = 0; r < rows; ++r, raw += row_bytes, out += out_bytes)
    for (int g = 0; g < groups; ++g) {
      const size_t count = size_t(std::min(kGroup, k - g * kGroup)), written = std::min(group_bytes, out_bytes - size_t(g) * group_bytes);
      const uint8_t* from = is_dense(kind) ? raw + size_t(g) * kGroup * size : numbers;
      if constexpr (is_dense(kind)) {
        if (count < kGroup) from = static_cast<const uint8_t*>(std::memcpy(numbers, from, count * size));
      } else {
        group_floats<kind>(raw, int(row_bytes / raw_block(kind).bytes), g, values);
      }
      if (count < kGroup) std::memset(numbers + count * size, 0, (kGroup - count) * size);
      uint8_t* const to_block = written < group_bytes ? block : out + size_t(g) * group_bytes;  // a row of bf16 may end inside a group
      const Rounding result = kernels.round_group(plain, to, from, to_block);
      if (result != Rounding::done) return result;
      if (to_block == block) std::memcpy(out + size_t(g) * group_bytes, block, written);
    }
  return Rounding::done;
}

}  // namespace

Rounding round_rows(const Kernels& kernels, Kind kind, Kind to, int rows, int k, const uint8_t* raw, uint8_t* out) {
  Rounding result = Rounding::done;
  with_kind(kind, [&](auto constant) { result = round_kind<constant>(kernels, to, rows, k, raw, out); });
  return result;
}

}  // namespace qwenbox
