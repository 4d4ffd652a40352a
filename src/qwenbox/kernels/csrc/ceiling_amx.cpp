// Ceilings of AMX tile products. A fed block is 32 x 32 results over 128 bytes of inputs a row, the inner block of an exact group-128
// product: 4 zeros, 8 tile loads from L1, 8 products, 4 stores. See ceiling.h.
#include <immintrin.h>

#include <cstring>

#include "ceiling.h"
#include "processor.h"

namespace qwenbox::ceiling {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t column_bytes[16];
  uint8_t rows[16];
};

bool available() { return !processor().amx; }

void enter() {
  TileConfig config;
  std::memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.column_bytes[i] = 64, config.rows[i] = 16;
  // The whole struct is an operand: GCC 12's _tile_loadconfig claims to read 8 bytes only, so stores to the rest would be dropped.
  asm volatile("ldtilecfg %0" ::"m"(config));
}

void leave() { _tile_release(); }

// Tile numbers are part of the instructions (GCC pastes them into the assembly), hence macros instead of one function with arguments.
#define REGISTERS(DOT)                \
  _tile_loadd(4, o.x, 64);            \
  _tile_loadd(5, o.x + 1024, 64);     \
  _tile_loadd(6, o.w, 64);            \
  _tile_loadd(7, o.w + 1024, 64);     \
  ZEROS;                              \
  for (long i = 0; i < blocks; i++) { \
    DOT(0, 4, 6);                     \
    DOT(1, 4, 7);                     \
    DOT(2, 5, 6);                     \
    DOT(3, 5, 7);                     \
  }

#define ZEROS    \
  _tile_zero(0); \
  _tile_zero(1); \
  _tile_zero(2); \
  _tile_zero(3)

#define STEP(DOT, x, w)         \
  _tile_loadd(4, x, 64);        \
  _tile_loadd(6, w, 64);        \
  DOT(0, 4, 6);                 \
  _tile_loadd(5, x + 1024, 64); \
  DOT(2, 5, 6);                 \
  _tile_loadd(7, w + 1024, 64); \
  DOT(1, 4, 7);                 \
  DOT(3, 5, 7)

#define FED(DOT)                            \
  for (long i = 0; i < blocks; i++) {       \
    const int8_t* x = o.x + (i & 3) * 4096; \
    const int8_t* w = o.w + (i & 3) * 4096; \
    int32_t* out = o.out + (i & 1) * 1024;  \
    ZEROS;                                  \
    STEP(DOT, x, w);                        \
    STEP(DOT, x + 2048, w + 2048);          \
    _tile_stored(0, out, 64);               \
    _tile_stored(1, out + 256, 64);         \
    _tile_stored(2, out + 512, 64);         \
    _tile_stored(3, out + 768, 64);         \
    asm volatile("" ::: "memory");          \
  }

double int8_registers(Operands& o, long blocks) {
  REGISTERS(_tile_dpbssd);
  return 4 * 2.0 * 16 * 16 * 64;
}
double bf16_registers(Operands& o, long blocks) {
  REGISTERS(_tile_dpbf16ps);
  return 4 * 2.0 * 16 * 16 * 32;
}
double int8_fed(Operands& o, long blocks) {
  FED(_tile_dpbssd);
  return 2.0 * 32 * 32 * 128;
}
double bf16_fed(Operands& o, long blocks) {
  FED(_tile_dpbf16ps);
  return 2.0 * 32 * 32 * 64;
}

}  // namespace

const Method amx_int8{"amx", 0, available, enter, leave, int8_registers, int8_fed};
const Method amx_bf16{"amx", 1, available, enter, leave, bf16_registers, bf16_fed};

}  // namespace qwenbox::ceiling
