// Every variant that this processor can run, or the one that is named, against a scalar twin: two loops straight from raw blocks and
// docs/numeric-contract.md. Bits must agree. Usage: test_linear [quick] [VARIANT]. Prints "N passed, N failed".
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

using namespace qwenbox;

namespace {

int passed = 0, failed = 0;
std::vector<const Kernels*> variants;  // that are checked

void check(bool good, const std::string& what) {
  (good ? passed : failed)++;
  if (!good && failed <= 30) std::printf("FAILED %s\n", what.c_str());
}

struct KindName {
  Kind kind;
  const char* name;
  int inputs, bytes;
};
const KindName kQuantised[] = {{Kind::q4_0, "q4_0", 32, 18},       {Kind::q4_1, "q4_1", 32, 20},       {Kind::q5_0, "q5_0", 32, 22},
                               {Kind::q8_0, "q8_0", 32, 34},       {Kind::q4_k, "q4_k", 256, 144},     {Kind::q5_k, "q5_k", 256, 176},
                               {Kind::q6_k, "q6_k", 256, 210},     {Kind::int4, "int4", 128, 67},      {Kind::int8, "int8", 128, 130},
                               {Kind::int4_64, "int4_64", 64, 35}, {Kind::int4_32, "int4_32", 32, 19}, {Kind::uint8, "uint8", 128, 131}};
const KindName kDense[] = {{Kind::f32, "f32", 1, 4}, {Kind::f16, "f16", 1, 2}, {Kind::bf16, "bf16", 1, 2}};

// --- the twin ----------------------------------------------------------------------------------------------------

float half(const uint8_t* p) {
  int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value = exponent == 31  ? (fraction ? NAN : INFINITY)
                : exponent == 0 ? std::ldexp(float(fraction), -24)
                                : std::ldexp(float(fraction | 1024), exponent - 25);
  return bits & 0x8000 ? -value : value;
}

// One input of one channel: the integer code with its zero point taken off, and which numbers scale it.
struct Code {
  int q;             // signed: q - z; K-quants with minima and q4_1: q
  float d, m;        // m: -dmin of K-quants
  int sub, sub_min;  // integer sub-scales, 1 and 0 where there are none
};

Code code_of(Kind kind, const uint8_t* row, int i) {
  switch (kind) {
    case Kind::q4_0: {
      const uint8_t* p = row + i / 32 * 18;
      int j = i % 32, byte = p[2 + j % 16];
      return {(j < 16 ? byte & 15 : byte >> 4) - 8, half(p), 0, 1, 0};
    }
    case Kind::q4_1: {
      const uint8_t* p = row + i / 32 * 20;
      int j = i % 32, byte = p[4 + j % 16];
      return {j < 16 ? byte & 15 : byte >> 4, half(p), half(p + 2), 1, 0};
    }
    case Kind::q5_0: {
      const uint8_t* p = row + i / 32 * 22;
      int j = i % 32, byte = p[6 + j % 16], fifth = p[2 + j / 8] >> j % 8 & 1;
      return {(j < 16 ? byte & 15 : byte >> 4) + 16 * fifth - 16, half(p), 0, 1, 0};
    }
    case Kind::q8_0: {
      const uint8_t* p = row + i / 32 * 34;
      return {int8_t(p[2 + i % 32]), half(p), 0, 1, 0};
    }
    case Kind::q4_k:
    case Kind::q5_k: {
      const bool five = kind == Kind::q5_k;
      const uint8_t *p = row + i / 256 * (five ? 176 : 144), *s = p + 4;
      int e = i % 256, j = e / 32, l = e % 32;
      int byte = p[(five ? 48 : 16) + e / 64 * 32 + l], q = j % 2 ? byte >> 4 : byte & 15;
      if (five) q += 16 * (p[16 + l] >> j & 1);
      int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) + 16 * (s[j - 4] >> 6);
      int mn = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) + 16 * (s[j] >> 6);
      return {q, half(p), -half(p + 2), sc, mn};
    }
    case Kind::q6_k: {
      const uint8_t* p = row + i / 256 * 210;
      int e = i % 256, h = e / 128, part = e % 128 / 32, l = e % 32;
      int byte = p[64 * h + part % 2 * 32 + l], low = part < 2 ? byte & 15 : byte >> 4;
      int high = p[128 + 32 * h + l] >> 2 * part & 3;
      return {low + 16 * high - 32, half(p + 208), 0, int8_t(p[192 + e / 16]), 0};
    }
    case Kind::int4: {
      const uint8_t* p = row + i / 128 * 67;
      int e = i % 128, byte = p[3 + e % 64];
      return {(e < 64 ? byte & 15 : byte >> 4) - p[2], half(p), 0, 1, 0};
    }
    case Kind::int8: {
      const uint8_t* p = row + i / 128 * 130;
      return {int8_t(p[2 + i % 128]), half(p), 0, 1, 0};
    }
    case Kind::int4_64:
    case Kind::int4_32: {
      const int inputs = kind == Kind::int4_64 ? 64 : 32, e = i % inputs;
      const uint8_t* p = row + i / inputs * (3 + inputs / 2);
      const int byte = p[3 + e % (inputs / 2)];
      return {(e < inputs / 2 ? byte & 15 : byte >> 4) - p[2], half(p), 0, 1, 0};
    }
    case Kind::uint8: {
      const uint8_t* p = row + i / 128 * 131;
      return {p[3 + i % 128] - p[2], half(p), 0, 1, 0};
    }
    default:
      return {};
  }
}

float dense_value(Kind kind, const uint8_t* row, int i) {
  if (kind == Kind::f16) return half(row + 2 * i);
  uint32_t bits = 0;
  if (kind == Kind::f32)
    std::memcpy(&bits, row + 4 * i, 4);
  else
    bits = uint32_t(row[2 * i] | row[2 * i + 1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct RoundedRow {
  std::vector<int> codes;
  std::vector<float> scales;
};

RoundedRow round_row(const float* x, int k) {
  int groups = (k + 127) / 128;
  RoundedRow out{std::vector<int>(groups * 128), std::vector<float>(groups)};
  for (int g = 0; g < groups; ++g) {
    float amax = 0;
    bool finite = true;
    for (int i = g * 128; i < k && i < (g + 1) * 128; ++i) {
      finite = finite && std::isfinite(x[i]);
      amax = std::fmax(amax, std::fabs(x[i]));
    }
    float r = amax > 0 ? 127.0f / amax : 0;
    if (!finite) {
      out.scales[g] = NAN;
    } else if (amax > 0 && std::isfinite(r)) {
      out.scales[g] = amax / 127.0f;
      for (int i = g * 128; i < k && i < (g + 1) * 128; ++i) {
        float code = std::nearbyint(x[i] * r);
        out.codes[i] = int(code > 127 ? 127 : code < -127 ? -127 : code);
      }
    }
  }
  return out;
}

float product(Kind kind, const std::vector<Code>& w, const RoundedRow& a) {
  const size_t step = kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q5_0 || kind == Kind::q8_0 || kind == Kind::int4_32 ? 32
                      : kind == Kind::int4_64                                                                                       ? 64
                                                                                                                                    : 128;
  float acc = 0;
  for (size_t i = 0; i < w.size();) {
    const size_t g = i / 128, end = std::min(w.size(), i + step);
    long long d = 0, s = 0, asum = 0;
    const Code first = w[i];
    for (; i < end; ++i) {
      d += (long long)w[i].sub * w[i].q * a.codes[i];
      s += (long long)w[i].sub_min * a.codes[i];
      asum += a.codes[i];
    }
    acc = std::fmaf(float(d) * first.d, a.scales[g], acc);
    if (kind == Kind::q4_1) acc = std::fmaf(float(asum) * first.m, a.scales[g], acc);
    if (kind == Kind::q4_k || kind == Kind::q5_k) acc = std::fmaf(float(s) * first.m, a.scales[g], acc);
  }
  return acc;
}

float dequantised(Kind kind, const Code& c) {
  switch (kind) {
    case Kind::q4_1:
      return c.d * float(c.q) + c.m;
    case Kind::q4_k:
    case Kind::q5_k:
      return (c.d * float(c.sub)) * float(c.q) - (-c.m) * float(c.sub_min);
    case Kind::q6_k:
      return (c.d * float(c.sub)) * float(c.q);
    default:
      return c.d * float(c.q);
  }
}

// bf16 weights by tiles: runs of 32 inputs, an even and an odd chain, inputs rounded to bf16, no denormals.
float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }
float rounded_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (!std::isnan(value)) bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}
float tile_product(const std::vector<float>& w, const float* x) {
  float acc = 0;
  for (size_t run = 0; run < w.size(); run += 32) {
    float chains[2] = {};
    for (size_t i = run; i < run + 32; ++i) {
      const float a = i < w.size() ? flushed(rounded_bf16(x[i])) : 0, b = i < w.size() ? flushed(w[i]) : 0;
      chains[i % 2] = flushed(std::fmaf(a, b, chains[i % 2]));
    }
    acc = flushed(acc + flushed(chains[0] + chains[1]));
  }
  return acc;
}

// --- data --------------------------------------------------------------------------------------------------------

std::mt19937 random_bits(20251121);

enum class Fill { random, top, bottom };
const char* const kFillNames[] = {"random codes", "largest codes", "smallest codes"};

void put_half(uint8_t* p, Fill fill) {
  // Random scales of all signs, subnormal ones among them; never Inf or NaN.
  uint32_t r = random_bits();
  uint16_t bits = fill == Fill::random ? uint16_t((r & 0x83FF) | (r >> 16) % 20 << 10) : 0x2C01;
  p[0] = uint8_t(bits), p[1] = uint8_t(bits >> 8);
}

std::vector<uint8_t> make_weight(const KindName& kind, int n, int k, Fill fill) {
  const int blocks = (k + kind.inputs - 1) / kind.inputs;
  std::vector<uint8_t> raw(size_t(n) * blocks * kind.bytes);
  const uint8_t codes = fill == Fill::top ? (kind.kind == Kind::q8_0 || kind.kind == Kind::int8 ? 0x7F : 0xFF)
                        : kind.kind == Kind::q8_0 || kind.kind == Kind::int8 ? 0x80
                                                                             : 0;
  for (size_t b = 0; b < size_t(n) * blocks; ++b) {
    uint8_t* p = raw.data() + b * kind.bytes;
    for (int i = 0; i < kind.bytes; ++i) p[i] = fill == Fill::random ? uint8_t(random_bits()) : codes;
    if (fill == Fill::bottom && kind.inputs == 256)
      std::memset(p + (kind.kind == Kind::q6_k ? 192 : 4), kind.kind == Kind::q6_k ? 0x80 : 0xFF, kind.kind == Kind::q6_k ? 16 : 12);
    put_half(kind.kind == Kind::q6_k ? p + 208 : p, fill);
    if (kind.kind == Kind::q4_1 || kind.kind == Kind::q4_k || kind.kind == Kind::q5_k) put_half(p + 2, fill);
    if (kind.kind == Kind::int4 || kind.kind == Kind::int4_64 || kind.kind == Kind::int4_32)
      p[2] = fill == Fill::random ? p[2] % 16 : fill == Fill::top ? 0 : 15;
    if (kind.kind == Kind::uint8 && fill != Fill::random) p[2] = fill == Fill::top ? 0 : 255;
  }
  return raw;
}

// Rows of many characters: normal, spread over many powers of two, all +-127 of one or alternating sign, zero groups, denormals, NaN, Inf.
std::vector<float> make_inputs(int rows, int k, size_t stride) {
  std::vector<float> x(rows * stride, 12345.0f);
  std::normal_distribution<float> normal;
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < k; ++i) {
      float& v = x[r * stride + i];
      v = normal(random_bits);
      switch (r % 12) {
        case 1:
          v = std::ldexp(v, int(random_bits() % 60) - 30);
          break;
        case 2:
          v = 3.0f;
          break;
        case 3:
          v = -3.0f;
          break;
        case 4:
          v = i % 2 ? 3.0f : -3.0f;
          break;
        case 5:
          v = i / 16 % 2 ? 0.7f : -0.7f;
          break;
        case 6:
          v = i / 128 % 2 ? v : 0.0f;
          break;
        case 7:
          v = std::ldexp(v, -125 - i / 128);
          break;
        case 8:
          v = r > 12 && i == k / 2 ? NAN : v;
          break;
        case 9:
          v = r > 12 && i == k - 1 ? -INFINITY : v;
          break;
        case 10:
          v = (i % 8 - 3.5f) / 2;
          break;  // ties of the rounding
        default:
          break;
      }
    }
  return x;
}

template <class T>
struct Aligned {
  explicit Aligned(size_t count) : memory(new (std::align_val_t(64)) T[count]()) {}
  ~Aligned() { operator delete[](memory, std::align_val_t(64)); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* memory;
};

bool same(const float* a, const float* b, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (std::memcmp(a + i, b + i, 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

struct Input {
  Input(int rows, int k)
      : rows(rows),
        k(k),
        groups((k + 127) / 128),
        stride(size_t(k) + 5),
        x(make_inputs(rows, k, stride)),
        codes(size_t(rows + 15) / 16 * 16 * groups * 128),
        members(size_t(rows + 15) / 16 * 16 * groups),
        raised(size_t(rows | 1) * groups * 128),
        scales(size_t(rows | 1) * groups) {
    for (int r = 0; r < rows; ++r) rounded.push_back(round_row(x.data() + r * stride, k));
  }
  Activations activations() { return {rows, k, groups, codes.memory, members.memory, raised.memory, scales.memory}; }

  int rows, k, groups;
  size_t stride;
  std::vector<float> x;
  Aligned<int8_t> codes;
  Aligned<RowGroup> members;
  Aligned<uint8_t> raised;
  Aligned<float> scales;
  std::vector<RoundedRow> rounded;
};

// --- checks ------------------------------------------------------------------------------------------------------

void check_rounding(const Kernels& kernels, Input& in) {
  Activations a = in.activations();
  kernels.quantize_rows(in.x.data(), in.stride, 0, in.rows / 2, a);
  kernels.quantize_rows(in.x.data(), in.stride, in.rows / 2, in.rows, a);
  bool good = true;
  for (int r = 0; r < in.rows; ++r)
    for (int g = 0; g < in.groups; ++g) {
      const int* expected = in.rounded[r].codes.data() + g * 128;
      const RowGroup& member = a.members[(r / 16 * in.groups + g) * 16 + r % 16];
      const int16_t* sums = member.sums;
      int sum[4] = {};
      for (int i = 0; i < 128; ++i) {
        good &= a.codes[((r / 16 * in.groups + g) * 2 + i / 64) * 1024 + r % 16 * 64 + i % 64] == expected[i];
        const int widths[4] = {8, 16, 32, 128}, first[4] = {0, 16, 24, 28};
        for (int w = 0; w < 4; ++w) {
          sum[w] += expected[i];
          if ((i + 1) % widths[w] == 0) good &= sums[first[w] + i / widths[w]] == sum[w], sum[w] = 0;
        }
      }
      if (kernels.raised) {
        for (int i = 0; i < 128; ++i) good &= a.raised[((g * 2 + i / 64) * (in.rows | 1) + r) * 64 + i % 64] == expected[i] + 128;
        good &= same(&a.scales[g * (in.rows | 1) + r], &member.scale, 1);
      }
      good &= sums[29] == 0 && same(&member.scale, &in.rounded[r].scales[g], 1);
    }
  check(good, std::string(kernels.name) + " rounds rows of " + std::to_string(in.k));
}

struct Case {
  const KindName& kind;
  int n, k;
  std::string name;
  std::vector<float> expected;  // [rows][n], without bias
  std::vector<float> bias;
};

// Runs rows [row_begin, row_end) in two calls that share the panels, into an output with a border.
template <class Run>
void check_product(const Case& c, int row_begin, int row_end, int panels, bool with_bias, const std::string& name, Run run) {
  const size_t stride = size_t(c.n) + 3;
  const float border = 777.0f;
  std::vector<float> out(size_t(row_end) * stride, border), expected = out;
  for (int r = row_begin; r < row_end; ++r)
    for (int i = 0; i < c.n; ++i) expected[r * stride + i] = c.expected[size_t(r) * c.n + i] + (with_bias ? c.bias[i] : 0.0f);
  if (!with_bias)
    for (int r = row_begin; r < row_end; ++r) std::memcpy(&expected[r * stride], &c.expected[size_t(r) * c.n], size_t(c.n) * 4);
  const int cut = panels / 2;
  if (cut > 0) run(row_begin, row_end, 0, cut, out.data(), stride);
  run(row_begin, row_end, cut, panels, out.data(), stride);
  check(same(out.data(), expected.data(), out.size()),
        name + " " + c.name + " rows " + std::to_string(row_begin) + ".." + std::to_string(row_end));
}

struct Packed {
  Packed(const KindName& kind, int n, int k, const std::vector<uint8_t>& raw)
      : layout(weight_layout(kind.kind, n, k)), data(layout.panel_bytes * layout.panels) {
    std::memset(data.memory, 0xA5, layout.panel_bytes * layout.panels);
    pack_panels(kind.kind, n, k, raw.data(), layout.panels / 2, layout.panels, data.memory);
    pack_panels(kind.kind, n, k, raw.data(), 0, layout.panels / 2, data.memory);
    weight = {kind.kind, n, k, layout.panels, layout.groups, data.memory, layout.panel_bytes};
  }
  WeightLayout layout;
  Aligned<uint8_t> data;
  Weight weight;
};

const uint8_t* row_of(const KindName& kind, const std::vector<uint8_t>& raw, int k, int row) {
  return raw.data() + size_t(row) * raw_row_bytes(kind.kind, k);
}

void check_quantised(const KindName& kind, int n, int k, Fill fill, Input& in, const std::vector<std::pair<int, int>>& ranges) {
  const std::vector<uint8_t> raw = make_weight(kind, n, k, fill);
  check(raw_row_bytes(kind.kind, k) * n == raw.size(), std::string("raw bytes of ") + kind.name);
  Case c{kind, n, k, std::string(kind.name) + " " + std::to_string(n) + "x" + std::to_string(k) + " " + kFillNames[int(fill)], {}, {}};
  c.expected.resize(size_t(in.rows) * n);
  for (int i = 0; i < n; ++i) {
    std::vector<Code> w(k);
    for (int j = 0; j < k; ++j) w[j] = code_of(kind.kind, row_of(kind, raw, k, i), j);
    for (int r = 0; r < in.rows; ++r) c.expected[size_t(r) * n + i] = product(kind.kind, w, in.rounded[r]);
    c.bias.push_back(std::ldexp(float(random_bits() % 1000), -7));
  }
  const Packed packed(kind, n, k, raw);
  std::vector<float> row(k), expected_row(k);
  for (int i = 0; i < n; i += 1 + n / 9) {
    for (int j = 0; j < k; ++j) expected_row[j] = dequantised(kind.kind, code_of(kind.kind, row_of(kind, raw, k, i), j));
    unpack_row(packed.weight, i, row.data());
    check(same(row.data(), expected_row.data(), k), c.name + " unpacked row " + std::to_string(i));
  }
  for (const Kernels* kernels : variants) {
    Activations a = in.activations();
    kernels->quantize_rows(in.x.data(), in.stride, 0, in.rows, a);
    for (auto range : ranges) {
      const bool with_bias = range.second % 2 == 1;
      Aligned<uint8_t> scratch(kernels->linear_scratch(range.second - range.first));
      check_product(c, range.first, range.second, packed.weight.panels, with_bias, kernels->name,
                    [&](int row_begin, int row_end, int panel_begin, int panel_end, float* out, size_t stride) {
                      kernels->linear(packed.weight, a, row_begin, row_end, panel_begin, panel_end, with_bias ? c.bias.data() : nullptr,
                                      out, stride, scratch.memory);
                    });
    }
  }
}

void check_dense(const KindName& kind, int n, int k, Input& in, const std::vector<std::pair<int, int>>& ranges) {
  std::vector<uint8_t> raw(size_t(n) * k * kind.bytes);
  for (size_t i = 0; i < size_t(n) * k; ++i) {
    const float value = std::ldexp(float(int(random_bits() % 4001) - 2000), -int(random_bits() % 24));
    std::memcpy(&raw[i * kind.bytes], reinterpret_cast<const uint8_t*>(&value) + (kind.bytes == 2 ? 2 : 0), kind.bytes);
    if (kind.kind == Kind::f16) put_half(&raw[2 * i], Fill::random);
  }
  Case c{kind, n, k, std::string(kind.name) + " " + std::to_string(n) + "x" + std::to_string(k), std::vector<float>(size_t(in.rows) * n),
         {}};
  Case tiles = c;
  std::vector<float> w(k);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < k; ++j) w[j] = dense_value(kind.kind, row_of(kind, raw, k, i), j);
    for (int r = 0; r < in.rows; ++r) {
      tiles.expected[size_t(r) * n + i] = tile_product(w, &in.x[r * in.stride]);
      float acc = 0;
      for (int j = 0; j < k; ++j) acc = std::fmaf(w[j], in.x[r * in.stride + j], acc);
      c.expected[size_t(r) * n + i] = acc;
    }
    c.bias.push_back(float(i));
  }
  tiles.bias = c.bias;
  const Packed packed(kind, n, k, raw);
  std::vector<float> row(k), expected_row(k);
  for (int j = 0; j < k; ++j) expected_row[j] = dense_value(kind.kind, row_of(kind, raw, k, n - 1), j);
  unpack_row(packed.weight, n - 1, row.data());
  check(same(row.data(), expected_row.data(), k), c.name + " unpacked row");
  for (const Kernels* kernels : variants)
    for (auto range : ranges) {
      const bool with_bias = range.second % 2 == 1;
      const bool by_tiles = kind.kind == Kind::bf16 && std::strcmp(kernels->name, "amx") == 0;
      check_product(by_tiles ? tiles : c, range.first, range.second, packed.weight.panels, with_bias, kernels->name,
                    [&](int row_begin, int row_end, int panel_begin, int panel_end, float* out, size_t stride) {
                      kernels->linear_dense(packed.weight, in.x.data(), in.stride, row_begin, row_end, panel_begin, panel_end,
                                            with_bias ? c.bias.data() : nullptr, out, stride);
                    });
    }
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  const char* const only = argc > 1 + quick ? argv[1 + quick] : nullptr;
  std::printf("variants:");
  for (auto kernels = available_kernels(); *kernels; ++kernels) {
    check(find_kernels((*kernels)->name) == *kernels, "a variant is found by its name");
    if (only && std::strcmp((*kernels)->name, only) != 0) continue;
    std::printf(" %s", (*kernels)->name);
    variants.push_back(*kernels);
  }
  std::printf("\n");
  check(find_kernels("none") == nullptr, "no variant has an unknown name");

  std::vector<std::pair<int, int>> few = {{0, 1}, {0, 2}, {1, 4}, {0, 7}, {14, 30}}, all;
  for (int rows = 1; rows <= 70; rows += quick ? 23 : 1) all.push_back({0, rows});
  all.insert(all.end(), {{3, 4}, {15, 17}, {13, 35}, {69, 70}});

  struct Shape {
    int n, k, rows;
  };
  const Shape shapes[] = {{70, 256, 70}, {64, 128, 30}, {1, 512, 30}, {130, 1024, 30}, {72, 896, 30}, {65, 928, 30}, {3, 40, 30}};
  for (const Shape& shape : shapes) {
    Input in(shape.rows, shape.k);
    for (const Kernels* kernels : variants) check_rounding(*kernels, in);
    const auto& ranges = shape.rows == 70 ? all : few;
    for (const KindName& kind : kQuantised)
      for (Fill fill : {Fill::random, Fill::top, Fill::bottom})
        if (fill == Fill::random || shape.k <= 256) check_quantised(kind, shape.n, shape.k, fill, in, ranges);
    if (shape.k <= 512)
      for (const KindName& kind : kDense) check_dense(kind, shape.n, shape.k, in, ranges);
  }
  Input many(530, 128);  // more rows than share one spreading of the codes, to vectors or to tiles
  for (int kind : {6, 7, 8, 9, 10, 11}) check_quantised(kQuantised[kind], 10, 128, Fill::random, many, {{0, 530}, {5, 529}});
  Input ragged(150, 288);  // many rows that end inside a group
  for (int kind : {7, 9, 10, 11}) check_quantised(kQuantised[kind], 10, 288, Fill::random, ragged, {{0, 150}, {7, 149}});
  Input wide(70, 256);  // more panels than share one pass of tiles over many rows
  for (const KindName& kind : kQuantised) check_quantised(kind, 600, 256, Fill::random, wide, {{0, 70}});
  Input deep(62, 8320);  // more inputs than are spread at once
  for (int kind : {7, 9, 10}) check_quantised(kQuantised[kind], 70, 8320, Fill::random, deep, {{0, 62}, {3, 60}});

#if defined(__x86_64__)
  if (!std::strcmp(variants.at(0)->name, "amx")) {  // where vectors take over is measured; the bits stay
    measure_tile_crossovers();
    for (int rows : tile_crossovers) check(rows <= 16, "tiles are used for 16 rows");
    Input in(17, 512);
    for (const KindName& kind : kQuantised) {
      const int rows = tile_crossovers[int(kind.kind)];
      check(rows >= 1, std::string("the crossover is measured for ") + kind.name);
      check_quantised(kind, 70, 512, Fill::random, in, {{0, rows}, {0, rows > 1 ? rows - 1 : 1}, {0, 17}});
    }
  }
#endif
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
