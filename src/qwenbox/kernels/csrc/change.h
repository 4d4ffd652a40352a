// What rounding does to weights: see change.cpp.
#pragma once
#include <cstddef>

namespace qwenbox {

// change = what is left of weights [rows][k] times scales [k] (null: 1), rounded to `bits` on the range of each group of inputs, of which
// only `share` of the further end is kept, and divided by the scales, minus the weights. False where a number is not finite or a step does
// not fit fp16.
bool rounding_change(const float* weights, const float* scales, size_t rows, int k, int group, int bits, float share, float* change);

}  // namespace qwenbox
