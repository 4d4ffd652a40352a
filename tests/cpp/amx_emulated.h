// The tile operations of amx.h in plain C++, as Intel's manual defines them, so that the kernels' results can be checked where the
// processor has no AMX. Misuse that would raise a fault there ends the program here.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace qwenbox {
namespace {

struct TileFile {
  TileConfig config;
  uint8_t data[8][16][64];
};

inline TileFile& tile_file() {
  static thread_local TileFile file;
  return file;
}

inline void tile_check(bool good, const char* rule) {
  if (good) return;
  std::fprintf(stderr, "AMX emulation: %s\n", rule);
  std::abort();
}

inline void load_config(const TileConfig& config) {
  tile_check(config.palette == 1 && config.start_row == 0, "palette 1, from row 0 on");
  for (uint8_t byte : config.reserved) tile_check(byte == 0, "reserved bytes of a configuration are zero");
  for (int i = 0; i < 16; ++i)
    tile_check(i < 8 ? config.rows[i] <= 16 && config.row_bytes[i] <= 64 && (config.rows[i] == 0) == (config.row_bytes[i] == 0)
                     : config.rows[i] == 0 && config.row_bytes[i] == 0,
               "eight tiles of at most 16 rows of 64 bytes");
  tile_file() = {config, {}};
}

inline void store_config(TileConfig& config) { config = tile_file().config; }

inline void tile_check_number(int tile) {
  tile_check(tile >= 0 && tile < 8 && tile_file().config.palette == 1 && tile_file().config.rows[tile] > 0, "a tile that is configured");
}

template <int tile>
void tile_zero() {
  tile_check_number(tile);
  std::memset(tile_file().data[tile], 0, 1024);
}

template <int tile>
void tile_load(const void* p, int64_t stride) {
  tile_zero<tile>();
  TileFile& file = tile_file();
  for (int r = 0; r < file.config.rows[tile]; ++r)
    std::memcpy(file.data[tile][r], static_cast<const char*>(p) + r * stride, file.config.row_bytes[tile]);
}

template <int tile>
void tile_store(void* p, int64_t stride) {
  tile_check_number(tile);
  const TileFile& file = tile_file();
  for (int r = 0; r < file.config.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(p) + r * stride, file.data[tile][r], file.config.row_bytes[tile]);
}

template <int c, int a, int b>
void tile_check_shapes() {
  static_assert(c != a && c != b && a != b, "three tiles");
  tile_check_number(c), tile_check_number(a), tile_check_number(b);
  const TileConfig& config = tile_file().config;
  tile_check(config.rows[c] == config.rows[a] && config.row_bytes[c] == config.row_bytes[b] && config.row_bytes[a] == 4 * config.rows[b] &&
                 config.row_bytes[c] % 4 == 0,
             "the shapes of a product");
}

template <class B, int c, int a, int b>
void tile_dot_bytes() {
  tile_check_shapes<c, a, b>();
  TileFile& file = tile_file();
  for (int m = 0; m < file.config.rows[c]; ++m) {
    int32_t sums[16];
    std::memcpy(sums, file.data[c][m], 64);
    for (int k = 0; k < file.config.rows[b]; ++k)
      for (int n = 0; n < file.config.row_bytes[c] / 4; ++n)
        for (int j = 0; j < 4; ++j) sums[n] += int32_t(int8_t(file.data[a][m][4 * k + j])) * int32_t(B(file.data[b][k][4 * n + j]));
    std::memcpy(file.data[c][m], sums, 64);
  }
}
template <int c, int a, int b>
void tile_dot_signed() {
  tile_dot_bytes<int8_t, c, a, b>();
}
template <int c, int a, int b>
void tile_dot_unsigned() {
  tile_dot_bytes<uint8_t, c, a, b>();
}

// Denormals count as zeros, as factors and as results.
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

inline float widened(const uint8_t* bf16) {
  uint32_t bits = uint32_t(bf16[0] | bf16[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

template <int c, int a, int b>
void tile_dot_bf16() {
  tile_check_shapes<c, a, b>();
  TileFile& file = tile_file();
  for (int m = 0; m < file.config.rows[c]; ++m)
    for (int n = 0; n < file.config.row_bytes[c] / 4; ++n) {
      float chains[2] = {};
      for (int k = 0; k < file.config.rows[b]; ++k)
        for (int j = 0; j < 2; ++j)
          chains[j] = flushed(std::fma(widened(file.data[a][m] + 4 * k + 2 * j), widened(file.data[b][k] + 4 * n + 2 * j), chains[j]));
      float sum;
      std::memcpy(&sum, file.data[c][m] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(chains[0] + chains[1]));
      std::memcpy(file.data[c][m] + 4 * n, &sum, 4);
    }
}

}  // namespace
}  // namespace qwenbox
