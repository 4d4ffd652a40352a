// The tile registers of AMX: eight matrices of up to 16 rows of 64 bytes. Tiles are template arguments because they are part of the
// instructions. Written in assembly, with the memory that is touched as operands: GCC 12's intrinsics let stores that fill a tile's memory
// or its configuration sink below the instruction that reads them.
#pragma once
#include <cstdint>
#include <cstring>

namespace qwenbox {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

inline void load_config(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void store_config(TileConfig& config) { asm volatile("sttilecfg %0" : "=m"(config)); }

template <int tile>
inline __attribute__((always_inline)) void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// Rows are `stride` bytes apart. Data stored less than some 50 cycles ago is waited for: nothing is forwarded from the store buffer.
template <int tile>
inline __attribute__((always_inline)) void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile), "m"(*static_cast<const char (*)[1024]>(p)));
}
template <int tile>
inline __attribute__((always_inline)) void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(*static_cast<char (*)[1024]>(p)) : "r"(p), "r"(stride), "i"(tile));
}
// int32 c[m][n] += sum over k, j < 4 of a[m][4 k + j] (signed) * b[k][4 n + j] (signed, or unsigned)
template <int c, int a, int b>
inline __attribute__((always_inline)) void tile_dot_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
inline __attribute__((always_inline)) void tile_dot_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
// float32 c[m][n] += (sum over k of a[m][2 k] * b[k][2 n]) + (the same of the odd ones), bf16 factors; denormals count as zeros.
template <int c, int a, int b>
inline __attribute__((always_inline)) void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

// Makes `config` this thread's. What the thread has is asked for, not remembered: another library may have used the tiles in between.
inline void ensure_config(const TileConfig& config) {
  TileConfig now;
  store_config(now);
  if (std::memcmp(&now, &config, sizeof now) != 0) load_config(config);
}

}  // namespace
}  // namespace qwenbox
