// Each tile instruction against two plain loops, on a processor with AMX or through the trap. Usage:
//   test_amx_trap             prints "tiles: trapped" or "tiles: processor", then "N passed, N failed"
//   test_amx_trap decode      for each line of hexadecimal bytes on standard input, the instruction as objdump writes it, or "unknown"
//   test_amx_trap fault RULE  breaks a rule
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "amx.h"
#include "amx_trap.h"
#include "processor.h"

using namespace qwenbox;

namespace {

int passed = 0, failed = 0;
std::mt19937 random_bits(20261122);

void check(bool good, const char* what) {
  (good ? passed : failed)++;
  if (!good) std::printf("FAILED %s\n", what);
}

struct alignas(64) Matrix {
  uint8_t bytes[16][64];
};

Matrix random_matrix() {
  Matrix m;
  for (auto& row : m.bytes)
    for (uint8_t& byte : row) byte = uint8_t(random_bits());
  return m;
}

// bf16 of all sizes, denormals and infinities among them, and few NaN.
Matrix random_bf16() {
  Matrix m;
  for (auto& row : m.bytes)
    for (int i = 0; i < 64; i += 2) {
      const uint32_t r = random_bits(), exponent = r >> 8 & 15 ? 127 - 70 + (r >> 16) % 140 : (r >> 16) % 3 ? 0 : 255;
      const uint16_t bits = uint16_t((r & 0x807F) | exponent << 7);
      std::memcpy(row + i, &bits, 2);
    }
  return m;
}

TileConfig config_of(int rows, int columns, int depth) {  // of products: sums in tile 0, rows in 1, columns in 2; the others are full
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.rows[i] = 16, config.row_bytes[i] = 64;
  config.rows[0] = config.rows[1] = uint8_t(rows);
  config.row_bytes[0] = config.row_bytes[2] = uint16_t(4 * columns);
  config.row_bytes[1] = uint16_t(4 * depth);
  config.rows[2] = uint8_t(depth);
  return config;
}

float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

// The upper bytes of a float32: four, or the two of a bf16.
float number(const uint8_t* p, int bytes) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 4 - bytes, p, size_t(bytes));
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

enum class Product { ss, su, us, uu, bf16 };

void twin(Product product, int rows, int columns, int depth, const Matrix& a, const Matrix& b, Matrix& c) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < columns; ++n) {
      uint8_t* const out = c.bytes[m] + 4 * n;
      if (product == Product::bf16) {
        float chains[2] = {};
        for (int i = 0; i < 2 * depth; ++i)
          chains[i % 2] = flushed(std::fmaf(number(a.bytes[m] + 2 * i, 2), number(b.bytes[i / 2] + 4 * n + 2 * (i % 2), 2), chains[i % 2]));
        const float sum = flushed(number(out, 4) + flushed(chains[0] + chains[1]));
        std::memcpy(out, &sum, 4);
        continue;
      }
      uint32_t sum;
      std::memcpy(&sum, out, 4);
      for (int i = 0; i < 4 * depth; ++i) {
        const uint8_t x = a.bytes[m][i], w = b.bytes[i / 4][4 * n + i % 4];
        const int left = product == Product::ss || product == Product::su ? int8_t(x) : int(x);
        const int right = product == Product::ss || product == Product::us ? int8_t(w) : int(w);
        sum += uint32_t(left * right);
      }
      std::memcpy(out, &sum, 4);
    }
}

bool same(const Matrix& a, const Matrix& b, bool floats) {
  for (int i = 0; i < 1024; i += 4) {
    const uint8_t *x = a.bytes[0] + i, *y = b.bytes[0] + i;
    if (std::memcmp(x, y, 4) != 0 && !(floats && std::isnan(number(x, 4)) && std::isnan(number(y, 4)))) return false;
  }
  return true;
}

void check_product(Product product, int rows, int columns, int depth) {
  const bool floats = product == Product::bf16;
  const Matrix a = floats ? random_bf16() : random_matrix(), b = floats ? random_bf16() : random_matrix();
  Matrix expected = floats ? random_bf16() : random_matrix(), found = expected;  // bytes outside of the shape stay
  load_config(config_of(rows, columns, depth));
  tile_load<0>(&found, 64);
  tile_load<1>(&a, 64);
  tile_load<2>(&b, 64);
  if (product == Product::ss) tile_dot_signed<0, 1, 2>();
  if (product == Product::su) tile_dot_unsigned<0, 1, 2>();
  if (product == Product::us) asm volatile("tdpbusd %tmm2, %tmm1, %tmm0");
  if (product == Product::uu) asm volatile("tdpbuud %tmm2, %tmm1, %tmm0");
  if (product == Product::bf16) tile_dot_bf16<0, 1, 2>();
  tile_store<0>(&found, 64);
  twin(product, rows, columns, depth, a, b, expected);
  check(same(found, expected, floats), "a product");
}

// Addresses are what the registers say; rows are as far apart as the index says, and none without one.
void check_addresses() {
  Matrix source[4], target;
  for (Matrix& m : source) m = random_matrix();
  const auto row = [&](int i) { return source[i / 16].bytes[i % 16]; };
  const auto stored = [&](int rows_apart, int first) {  // tile 3, against rows of `source`
    tile_store<3>(&target, 64);
    bool good = true;
    for (int r = 0; r < 16; ++r) good &= std::memcmp(target.bytes[r], row(first + r * rows_apart), 64) == 0;
    return good;
  };
  load_config(config_of(16, 16, 16));
  asm volatile("mov %0, %%r12; mov $32, %%r13; tileloadd -64(%%r12,%%r13,4), %%tmm3" ::"r"(row(2)), "m"(source) : "r12", "r13");
  check(stored(2, 1), "rows 4 * 32 bytes apart, from 64 bytes before a register");
  asm volatile("mov %0, %%rbx; mov $-64, %%r9; tileloaddt1 0x400(%%rbx,%%r9,1), %%tmm3" ::"r"(source), "m"(source) : "rbx", "r9");
  check(stored(-1, 16), "rows backwards, from 1,024 bytes behind a register");
  asm volatile("tileloadd (%0), %%tmm3" ::"r"(row(5)), "m"(source));
  check(stored(0, 5), "the same row without an index");

  Matrix written[2];
  std::memset(written, 0, sizeof written);
  asm volatile("mov %1, %%r15; mov $64, %%r8; tilestored %%tmm3, (%%r15,%%r8,2)" : "=m"(written) : "r"(written) : "r15", "r8");
  bool good = true;
  for (int r = 0; r < 32; ++r)
    for (int i = 0; i < 64; ++i) good &= written[r / 16].bytes[r % 16][i] == (r % 2 ? 0 : row(5)[i]);
  check(good, "every other row is written");
  tile_zero<3>();
  tile_store<3>(&target, 64);
  good = true;
  for (const auto& zeros : target.bytes)
    for (uint8_t byte : zeros) good &= byte == 0;
  check(good, "a tile is zeroed");
}

void check_configurations() {
  const TileConfig config = config_of(7, 5, 3);
  TileConfig now;
  load_config(config);
  store_config(now);
  check(std::memcmp(&now, &config, sizeof now) == 0, "a configuration is stored as it was loaded");
  std::thread([] {
    TileConfig other;
    store_config(other);
    check(other.palette == 0, "a new thread has none");
  }).join();
  ensure_config(config_of(16, 16, 16));
  store_config(now);
  check(now.rows[1] == 16, "another one takes its place");
  asm volatile("tilerelease");
  store_config(now);
  check(now.palette == 0 && now.rows[0] == 0, "none is left");
}

int decode_lines() {
  char line[256];
  while (std::fgets(line, sizeof line, stdin)) {
    uint8_t code[32] = {};
    char* p = line;
    for (uint8_t& byte : code) byte = uint8_t(std::strtoul(p, &p, 16));
    amx_trap::Instruction instruction;
    std::puts(amx_trap::decode(code, instruction) ? amx_trap::text(instruction).c_str() : "unknown");
  }
  return 0;
}

int break_rule(const char* rule) {
  TileConfig config = config_of(16, 16, 16);
  const auto is = [&](const char* name) { return std::strcmp(rule, name) == 0; };
  if (is("no configuration")) tile_zero<0>();
  if (is("palette")) config.palette = 2;
  if (is("start row")) config.start_row = 1;
  if (is("reserved")) config.reserved[13] = 1;
  if (is("rows")) config.rows[7] = 17;
  if (is("bytes")) config.row_bytes[7] = 65;
  if (is("rows without bytes")) config.row_bytes[3] = 0;
  if (is("nine tiles")) config.rows[8] = 1, config.row_bytes[8] = 4;
  if (is("depth")) config.rows[2] = 15;
  if (is("heights")) config.rows[1] = 15;
  if (is("widths")) config.row_bytes[2] = 60;
  if (is("parts of words")) config.row_bytes[0] = config.row_bytes[2] = 62;
  if (is("no tile")) config.rows[2] = 0, config.row_bytes[2] = 0;
  load_config(config);
  if (is("twice")) asm volatile(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc0");  // tdpbssd %tmm1,%tmm0,%tmm0
  if (is("no instruction")) asm volatile("ud2");
  tile_dot_signed<0, 1, 2>();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "decode") == 0) return decode_lines();
  if (processor().amx) return std::printf("no tiles: %s\n", processor().amx), 1;
  if (argc == 3 && std::strcmp(argv[1], "fault") == 0) return break_rule(argv[2]);
  std::printf("tiles: %s\n", amx_trap::installed() ? "trapped" : "processor");
  for (Product product : {Product::ss, Product::su, Product::us, Product::uu, Product::bf16})
    for (int rows : {1, 2, 15, 16})
      for (int columns : {1, 3, 16})
        for (int depth : {1, 8, 16}) check_product(product, rows, columns, depth);
  check_addresses();
  check_configurations();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
