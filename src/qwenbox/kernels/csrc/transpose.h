// Square blocks transposed in the baseline's vectors, which the compiler knows on every processor.
#pragma once
#include "blocks.h"

namespace qwenbox {
namespace {

typedef uint32_t Words4 __attribute__((vector_size(16)));

inline Words4 interleave_low(Words4 a, Words4 b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Words4 interleave_high(Words4 a, Words4 b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
inline Shorts8 interleave_low(Shorts8 a, Shorts8 b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Shorts8 interleave_high(Shorts8 a, Shorts8 b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

inline Bytes16 interleave_low(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes16 interleave_high(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// A square block of 4 rows of 4-byte elements, 8 of 2-byte ones or 16 of bytes, transposed; strides in bytes.
template <class Vector, int rows>
inline void transpose(const uint8_t* __restrict src, size_t src_stride, uint8_t* __restrict dst, size_t dst_stride) {
  Vector v[rows], w[rows];
  for (int i = 0; i < rows; ++i) v[i] = read<Vector>(src + i * src_stride);
  for (int step = 1; step < rows; step *= 2) {  // a perfect shuffle each
    for (int i = 0; i < rows / 2; ++i) {
      w[2 * i] = interleave_low(v[i], v[i + rows / 2]);
      w[2 * i + 1] = interleave_high(v[i], v[i + rows / 2]);
    }
    for (int i = 0; i < rows; ++i) v[i] = w[i];
  }
  for (int i = 0; i < rows; ++i) write(dst + i * dst_stride, v[i]);
}

}  // namespace
}  // namespace qwenbox
