// Raw blocks of any kind to our own int8 and int4 blocks or to bf16, bit for bit as quants.round_tensor does it in NumPy; plain loops over
// one group of 128 inputs, which the compiler turns into the baseline's vectors.
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"

namespace qwenbox {
namespace {

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

constexpr float kLargestHalf = 65504.0f;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The numbers of group g of a row, in the order of operations of the gguf package.
template <Kind kind>
inline void group_floats(const uint8_t* row, int row_blocks, int g, float* __restrict out) {
  if (is_dense(kind)) {  // the row is long enough: see round_rows
    for (int i = 0; i < kGroup; ++i) {
      if (kind == Kind::f32) out[i] = read<float>(row + 4 * (size_t(g) * kGroup + i));
      if (kind == Kind::f16) out[i] = from_f16(read<uint16_t>(row + 2 * (size_t(g) * kGroup + i)));
      if (kind == Kind::bf16) out[i] = from_bits(uint32_t(read<uint16_t>(row + 2 * (size_t(g) * kGroup + i))) << 16);
    }
    return;
  }
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

struct Range {
  float low, high;  // low <= 0 <= high
  bool finite;
};

Range range_of(const float* values) {
  Floats4 low{}, high{};
  Ints4 bad{};
  for (int i = 0; i < kGroup; i += 4) {
    Floats4 v;
    std::memcpy(&v, values + i, 16);
    low = v < low ? v : low;
    high = v > high ? v : high;
    bad |= ((Ints4)v & 0x7F800000) == 0x7F800000;
  }
  return {std::min(std::min(low[0], low[1]), std::min(low[2], low[3])), std::max(std::max(high[0], high[1]), std::max(high[2], high[3])),
          !(bad[0] | bad[1] | bad[2] | bad[3])};
}

// round(values / step) + shift, within the bounds.
void levels_of(const float* values, float step, int shift, int low, int high, int32_t* __restrict levels) {
  for (int i = 0; i < kGroup; ++i) levels[i] = int32_t((values[i] / step + kRounder) - kRounder) + shift;
  for (int i = 0; i < kGroup; ++i) levels[i] = std::min(std::max(levels[i], low), high);
}

Rounding round_int8(const float* values, const Range& range, uint8_t* block) {
  const float scale = std::max(-range.low, range.high) / 127.0f;
  if (scale > kLargestHalf) return Rounding::too_large;
  const uint16_t half = to_f16(scale);
  int32_t levels[kGroup];
  levels_of(values, half ? from_f16(half) : 1.0f, 0, -127, 127, levels);
  write(block, half);
  for (int i = 0; i < kGroup; ++i) block[2 + i] = uint8_t(levels[i]);
  return Rounding::done;
}

Rounding round_int4(const float* values, const Range& range, uint8_t* block) {
  const float scale = std::max(range.high - range.low, 1e-5f) / 15.0f;
  if (!(scale <= kLargestHalf)) return Rounding::too_large;
  const uint16_t half = to_f16(scale);
  const float step = from_f16(half);
  const int zero = std::min(int((-range.low / step + kRounder) - kRounder), 15);
  int32_t levels[kGroup];
  levels_of(values, step, zero, 0, 15, levels);
  write(block, half);
  block[2] = uint8_t(zero);
  for (int i = 0; i < 64; ++i) block[3 + i] = uint8_t(levels[i] | levels[i + 64] << 4);
  return Rounding::done;
}

void round_bf16(const float* values, int count, uint8_t* out) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    write(out + 2 * i, uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16));
  }
}

template <Kind kind>
Rounding round_kind(Kind to, int rows, int k, const uint8_t* raw, uint8_t* out) {
  const size_t row_bytes = raw_row_bytes(kind, k), out_bytes = raw_row_bytes(to, k), block = size_t(raw_block(to).bytes);
  const int row_blocks = int(row_bytes / raw_block(kind).bytes), groups = (k + kGroup - 1) / kGroup;
  alignas(64) float values[kGroup];
  for (int r = 0; r < rows; ++r, raw += row_bytes, out += out_bytes)
    for (int g = 0; g < groups; ++g) {
      const int count = std::min(kGroup, k - g * kGroup);
      if (is_dense(kind) && count < kGroup) {
        uint8_t last[4 * kGroup] = {};
        std::memcpy(last, raw + size_t(g) * kGroup * raw_block(kind).bytes, size_t(count) * raw_block(kind).bytes);
        group_floats<kind>(last, row_blocks, 0, values);
      } else {
        group_floats<kind>(raw, row_blocks, g, values);
      }
      std::fill(values + count, values + kGroup, 0.0f);
      const Range range = range_of(values);
      Rounding result = range.finite ? Rounding::done : Rounding::not_finite;
      if (result == Rounding::done && to == Kind::int8) result = round_int8(values, range, out + g * block);
      if (result == Rounding::done && to == Kind::int4) result = round_int4(values, range, out + g * block);
      if (result == Rounding::done && to == Kind::bf16) round_bf16(values, count, out + size_t(g) * kGroup * 2);
      if (result != Rounding::done) return result;
    }
  return Rounding::done;
}

}  // namespace

Rounding round_rows(Kind kind, Kind to, int rows, int k, const uint8_t* raw, uint8_t* out) {
  Rounding result = Rounding::done;
  with_kind(kind, [&](auto constant) { result = round_kind<constant>(to, rows, k, raw, out); });
  return result;
}

}  // namespace qwenbox
