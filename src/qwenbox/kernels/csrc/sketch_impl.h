// One group of a sketch (sketch.h), once a variant, over the vocabulary of vec_*.h; with the same bits in all of them.
#pragma once
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"

namespace qwenbox {
namespace {

constexpr int kLevels = 15, kQuads = kGroup / 4, kLane = 4 * kPanel;  // a quad of inputs of all channels

// At least `value`, infinity where that is not a number.
inline uint16_t to_f16_above(float value) {
  if (!(value <= 65504.0f)) return 0x7C00;
  const uint16_t half = to_f16(value);
  return uint16_t(half + (from_f16(half) < value));
}

template <class T>
inline T smallest4(const T* v) {
  const T a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
template <class T>
inline T largest4(const T* v) {
  const T a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
inline float norm4(const float* squares) { return std::sqrt(squares[0] + squares[1] + squares[2] + squares[3]); }

void sketch_group(const uint8_t* exact, int groups, uint8_t* small, uint16_t* errors) {
  constexpr Layout from = layout_of(Kind::int8), to = layout_of(Kind::int4);
  alignas(64) uint8_t low[kLane], high[kLane], levels[kQuads][kLane];
  std::memset(low, 128, sizeof low);
  std::memset(high, 128, sizeof high);
  for (int q = 0; q < kQuads; ++q)
    for (int i = 0; i < kLane; ++i) {
      const uint8_t code = exact[kLane * q + i];
      low[i] = code < low[i] ? code : low[i];
      high[i] = code > high[i] ? code : high[i];
    }
  for (int first = 0; first < kPanel; first += 4) {  // channels: 16 lanes
    alignas(64) float scale[16], step[16], ratio[16], zero[16], lost[16], most[16], whole[16];
    for (int c = 0; c < 4; ++c) {
      const int channel = first + c;
      const float s = from_f16(read<uint16_t>(exact + from.code_bytes() + 2 * channel));
      const float one = s * float(smallest4(low + 4 * channel) - 128), other = s * float(largest4(high + 4 * channel) - 128);
      const float width = std::fabs(other - one) / kLevels;
      const uint16_t half = width <= 65504.0f ? to_f16(width) : 0;  // else everything is error
      const float t = from_f16(half), r = t > 0 ? s / t : 0.0f;
      const int least = t > 0 ? int(nearest_integer(-(one < other ? one : other) / t)) : 0, z = least < kLevels ? least : kLevels;
      write(small + to.code_bytes() + 2 * channel, half);
      write(small + to.code_bytes() + 2 * (kPanel + channel), int16_t(-z));
      for (int i = 4 * c; i < 4 * c + 4; ++i) scale[i] = s, step[i] = t, ratio[i] = r, zero[i] = float(z);
    }
    const Floats scales = load(scale), steps = load(step), ratios = load(ratio), shift = load(zero);
    Floats errors2 = splat(0.0f), largest_error = splat(0.0f), values2 = splat(0.0f);
    for (int q = 0; q < kQuads; ++q) {
      const int at = 4 * first;
      const Floats code = to_floats(load_u8(exact + kLane * q + at) - splat(int32_t(128)));
      const Floats near = (code * ratios + splat(kRounder)) - splat(kRounder) + shift;
      const Floats level = min(max(near, splat(0.0f)), splat(float(kLevels)));
      const Floats value = code * scales, error = value - (level - shift) * steps;
      store_i8(reinterpret_cast<int8_t*>(&levels[q][at]), to_ints(level));
      errors2 = errors2 + error * error;
      largest_error = max(max(error, splat(0.0f) - error), largest_error);
      values2 = values2 + value * value;
    }
    store(lost, errors2), store(most, largest_error), store(whole, values2);
    for (int c = 0; c < 4; ++c) {
      const float error = norm4(lost + 4 * c) * (1 + 0x1p-14f), rounding = float(groups + 8) * 0x1p-23f * (norm4(whole + 4 * c) + error);
      errors[first + c] = to_f16_above(largest4(most + 4 * c) + rounding);
      errors[kPanel + first + c] = to_f16_above(error + rounding);
    }
  }
  for (int t = 0; t < 2; ++t)
    for (int r = 0; r < 8; ++r)
      for (int i = 0; i < kLane; ++i) small[kLane * (8 * t + r) + i] = uint8_t(levels[16 * t + r][i] | levels[16 * t + r + 8][i] << 4);
}

}  // namespace
}  // namespace qwenbox
