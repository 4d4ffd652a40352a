// Rounding of one group of plain numbers to a raw block (round.cpp), once a variant, over the vocabulary of vec_*.h; with the same bits in
// all of them, which are those of quants.round_tensor in NumPy.
#pragma once
#include <algorithm>

#include "blocks.h"
#include "kernels.h"
#include "layout.h"

namespace qwenbox {
namespace {

template <Kind dense>
Rounding round_group_of(Kind to, const uint8_t* numbers, uint8_t* block) {
  constexpr int vectors = kGroup / 16, vector_bytes = 16 * layout_of(dense).bits / 8;
  Floats values[vectors], low = splat(0.0f), high = low;
  Ints magnitude = splat(0);
  for (int i = 0; i < vectors; ++i) {
    values[i] = load_dense<dense>(numbers + vector_bytes * i);
    low = min(values[i], low);
    high = max(values[i], high);
    magnitude = max(bits(values[i]) & splat(0x7FFFFFFF), magnitude);
  }
  if (reduce_max(magnitude) >= 0x7F800000) return Rounding::not_finite;
  if (to == Kind::bf16) {
    for (int i = 0; i < vectors; ++i) store_bf16(reinterpret_cast<uint16_t*>(block) + 16 * i, values[i]);
    return Rounding::done;
  }
  const bool zeros = to == Kind::int4;
  const GroupSteps steps = group_steps(reduce_max(splat(0.0f) - low), reduce_max(high), zeros);
  if (!steps.fits) return Rounding::too_large;
  const Floats step = splat(steps.step), shift = splat(steps.zero);
  const Floats least = splat(zeros ? 0.0f : -127.0f), most = splat(zeros ? 15.0f : 127.0f);
  Ints levels[vectors];
  for (int i = 0; i < vectors; ++i) {
    const Floats near = (values[i] / step + splat(kRounder)) - splat(kRounder) + shift;
    levels[i] = to_ints(min(max(near, least), most));
  }
  write(block, steps.half);
  if (zeros) block[2] = uint8_t(steps.zero);
  int8_t* const codes = reinterpret_cast<int8_t*>(block) + (zeros ? 3 : 2);
  for (int i = 0; i < (zeros ? vectors / 2 : vectors); ++i)
    store_i8(codes + 16 * i, zeros ? levels[i] | shift_left<4>(levels[i + vectors / 2]) : levels[i]);
  return Rounding::done;
}

Rounding round_group(Kind dense, Kind to, const uint8_t* numbers, uint8_t* block) {
  if (dense == Kind::f32) return round_group_of<Kind::f32>(to, numbers, block);
  return dense == Kind::f16 ? round_group_of<Kind::f16>(to, numbers, block) : round_group_of<Kind::bf16>(to, numbers, block);
}

}  // namespace
}  // namespace qwenbox
