// What rounding does to weights, for the searches of `qwenbox quantize`: bit for bit as quantize/grid.py says it in NumPy; plain loops over
// a group, in the baseline's vectors: the products behind it take ten times as long.
#include "change.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace qwenbox {
namespace {

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

constexpr int kMostInputs = 128;

// The range of a group, 0 within; false if a value is not finite.
bool range_of(const float* values, int group, float* low, float* high) {
  Floats4 least{}, most{};
  Ints4 bad{};
  for (int i = 0; i < group; i += 4) {
    Floats4 v;
    std::memcpy(&v, values + i, 16);
    least = v < least ? v : least;
    most = v > most ? v : most;
    bad |= ((Ints4)v & 0x7F800000) == 0x7F800000;
  }
  *low = std::min(std::min(least[0], least[1]), std::min(least[2], least[3]));
  *high = std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
  return !(bad[0] | bad[1] | bad[2] | bad[3]);
}

// In place: values to the nearest of their steps. Range and steps are those of Grid.steps.
bool round_group(float* values, int group, int bits, float share) {
  float low, high;
  if (!range_of(values, group, &low, &high)) return false;
  const float furthest = std::max(-low, high) * share;
  const auto [fits, half, step, zero] = group_steps(std::min(-low, furthest), std::min(high, furthest), bits == 4);
  if (!fits) return false;
  const float least = bits == 4 ? -zero : -127.0f, most = bits == 4 ? 15.0f - zero : 127.0f;
  for (int i = 0; i < group; ++i) values[i] = std::min(std::max(nearest_integer(values[i] / step), least), most) * step;
  return true;
}

}  // namespace

bool rounding_change(const float* weights, const float* scales, size_t rows, int k, int group, int bits, float share, float* change) {
  alignas(64) float values[kMostInputs];
  for (size_t r = 0; r < rows; ++r, weights += k, change += k)
    for (int first = 0; first < k; first += group) {
      const float *own = weights + first, *scale = scales ? scales + first : nullptr;
      for (int i = 0; i < group; ++i) values[i] = scale ? own[i] * scale[i] : own[i];
      if (!round_group(values, group, bits, share)) return false;
      for (int i = 0; i < group; ++i) change[first + i] = (scale ? values[i] / scale[i] : values[i]) - own[i];
    }
  return true;
}

}  // namespace qwenbox
