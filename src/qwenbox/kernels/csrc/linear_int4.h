// More than a few rows of int4, int4_64 or int4_32 on 512-bit VNNI. What a tile does to each sum after its products takes the ports that
// multiply, so as little as possible is left there: weights are signed codes with the zero point taken off, inputs are raised to unsigned
// ones, sums start from what that adds to each channel and from the bits of 1.5 * 2^23, and so end as a float that is far too large, which
// the fma with the scale takes off: one rounding, as the contract has it. That leaves two operations a sum, 768 products of 816 operations.
//
// A panel is spread once for all chunks of rows, into the second cache; a chunk keeps its accumulators in the first. Tiles fetch what is
// needed next between their products: fetches that follow one another stall the loads behind them.
#pragma once
#include "layout.h"

namespace qwenbox {
namespace {
namespace int4 {

constexpr int kTile = 6, kLeastTile = 4;  // rows
constexpr int kChunk = 72;                // rows; a single one has as few as 9, so that tiles have 4 to 6
constexpr int kGroups = 64;               // that are spread at once; more inputs go on from what is written
constexpr int kBits = 0x4B400000;
constexpr float kRaised = 12582912.0f;  // 1.5 * 2^23, whose bits these are; a sum is less than 128 * 15 * 127 < 2^22

template <Kind kind>
struct alignas(64) Spread {
  static constexpr int blocks = blocks_of(kind);
  uint8_t codes[2][16][kPanel][4];
  int32_t starts[blocks][kPanel];
  float scales[blocks][kPanel], bases[blocks][kPanel];
};
constexpr int kTiles = kChunk / kTile;
// Lines that a tile fetches: of the next group, spread or packed; where weights are used once, of the packed one and of the one behind it.
constexpr int part_of(int bytes) { return (bytes / 64 + kTiles - 1) / kTiles; }
constexpr int kOncePart = 24;

template <Kind kind>
struct alignas(64) Scratch {
  Spread<kind> groups[kGroups];
  float acc[kChunk][kPanel];
};

template <Kind kind>
void spread(const Packed<kind>& from, Spread<kind>& out) {
  constexpr int blocks = blocks_of(kind);
  const __m512i fifteen = _mm512_set1_epi8(15), first_bytes = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
  for (int c = 0; c < kPanel; c += 16) {
    __m512i minus_zeros[blocks];
    for (int j = 0; j < blocks; ++j) minus_zeros[j] = _mm512_shuffle_epi8(from.minus_zero(j, c).v, first_bytes);
    Ints sums[4];  // of 32 inputs
    for (int t = 0; t < 2; ++t) {
      Ints low_sums = splat(0), high_sums = splat(0);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        const __m512i both = load_bytes(from.codes + 2048 * t + 256 * r + 4 * c).v;
        const __m512i low = _mm512_add_epi8(_mm512_and_si512(both, fifteen), minus_zeros[2 * t * blocks / 4]);
        const __m512i high = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), fifteen), minus_zeros[(2 * t + 1) * blocks / 4]);
        low_sums = dot4<8>(low_sums, {_mm512_set1_epi8(1)}, {low});
        high_sums = dot4<8>(high_sums, {_mm512_set1_epi8(1)}, {high});
        _mm512_store_si512(out.codes[t][r][c], low);
        _mm512_store_si512(out.codes[t][r + 8][c], high);
      }
      sums[2 * t] = low_sums, sums[2 * t + 1] = high_sums;
    }
    for (int j = 0; j < blocks; ++j) {
      Ints sum = sums[4 / blocks * j];
      for (int i = 1; i < 4 / blocks; ++i) sum = sum + sums[4 / blocks * j + i];
      store(out.starts[j] + c, splat(kBits) - shift_left<7>(sum));
      const Floats scale = from.scale(j, c);
      store(out.scales[j] + c, scale);
      store(out.bases[j] + c, scale * splat(-kRaised));
    }
  }
}

// What a tile fetches.
struct Ahead {
  const uint8_t *spread, *packed;
  float* out;  // to be written, a line a row
  size_t out_stride;
};

// once: the weights. `rows` rows over one group; raised: the first one's first 64 inputs, the others are `half` bytes further.
template <Kind kind, int rows, bool once>
__attribute__((noinline)) void tile(const Spread<kind>& group, const uint8_t* raised, size_t half, const float* scales, float* acc,
                                    const Ahead& ahead) {
  constexpr int blocks = kPanel / 16, packed_bytes = layout_of(kind).unit_bytes(), scaled_steps = 32 / Spread<kind>::blocks;
  constexpr int spread_part = part_of(int(sizeof(Spread<kind>))), packed_part = part_of(packed_bytes);
  __m512i sums[rows][blocks];
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t) {
    const uint8_t* const inputs = raised + size_t(t) * half;
#pragma GCC unroll 16
    for (int q = 0; q < 16; ++q) {
      const int step = 16 * t + q, j = step / scaled_steps;
      if (step % scaled_steps == 0)
#pragma GCC unroll 6
        for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
          for (int b = 0; b < blocks; ++b) __asm__ volatile("vmovdqa64 %1, %0" : "=v"(sums[m][b]) : "m"(group.starts[j][16 * b]));
      if (!once && step >= 1 && step <= spread_part) prefetch(ahead.spread + 64 * (step - 1));
      if (q >= 2 && q < 2 + rows) prefetch(inputs + 64 * (rows + q - 2));
      if (step >= 24 && step < 24 + rows) prefetch_write(ahead.out + size_t(step - 24) * ahead.out_stride);
      if (!once && step >= 16 && step < 16 + packed_part) prefetch(ahead.packed + 64 * (step - 16));
      if (once && step < kOncePart) prefetch(ahead.packed + 64 * step), prefetch_far(ahead.packed + packed_bytes + 64 * step);
      __m512i weights[blocks];
#pragma GCC unroll 4
      for (int b = 0; b < blocks; ++b) __asm__ volatile("vmovdqa64 %1, %0" : "=v"(weights[b]) : "m"(group.codes[t][q][16 * b]));
#pragma GCC unroll 6
      for (int m = 0; m < rows; ++m) {
        __m512i input;
        __asm__ volatile("vpbroadcastd %1, %0" : "=v"(input) : "m"(inputs[64 * m + 4 * q]));
#pragma GCC unroll 4
        for (int b = 0; b < blocks; ++b) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[m][b]) : "v"(input), "v"(weights[b]));
      }
      if (step % scaled_steps == scaled_steps - 1)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; ++b) {
          const Floats scale = load(group.scales[j] + 16 * b), base = load(group.bases[j] + 16 * b);
#pragma GCC unroll 6
          for (int m = 0; m < rows; ++m) {
            float* const to = acc + kPanel * m + 16 * b;
            store(to, fma(fma(from_bits({sums[m][b]}), scale, base), splat(scales[m]), load(to)));
          }
        }
    }
  }
}

template <Kind kind, bool once, int rows = kTile, class... Arguments>
QWENBOX_INLINE void tile_of(int height, const Arguments&... arguments) {
  if constexpr (rows > kLeastTile) {
    if (height < rows) return tile_of<kind, once, rows - 1>(height, arguments...);
  }
  tile<kind, rows, once>(arguments...);
}

// Rows [first, first + rows) of a panel over groups [begin, end) of the weight. fresh: these are spread on the way; once: for this chunk
// only.
template <Kind kind, bool once>
void chunk_of(const Weight& w, const Activations& a, int first, int rows, int panel, int begin, int end, bool fresh, float* out,
              size_t out_stride, Scratch<kind>& scratch) {
  constexpr int packed_bytes = layout_of(kind).unit_bytes(), spread_part = part_of(int(sizeof(Spread<kind>)));
  const uint8_t* const panel_data = w.data + size_t(panel) * w.panel_bytes;
  const int tiles = (rows + kTile - 1) / kTile, part = once ? (packed_bytes / 64 + tiles - 1) / tiles : part_of(packed_bytes);
  for (int g = begin; g < end; ++g) {
    const Packed<kind> source(panel_data, g);
    Spread<kind>& group = scratch.groups[once ? 0 : g - begin];
    if (fresh) spread(source, group);
    const bool last = g + 1 == end, writes = g >= end - kPanel / 16;
    const bool fetches = fresh || last;  // packed weights; the next panel follows at once
    const uint8_t* fetched = fetches ? source.codes + packed_bytes : group.codes[0][0][0];
    Ahead ahead{scratch.groups[last ? 0 : g + 1 - begin].codes[0][0][0], nullptr, nullptr, writes ? out_stride : kPanel};
    for (int row = 0, left = tiles, height; left > 0; --left, row += height) {
      height = (rows - row + left - 1) / left;
      float* const acc = scratch.acc[row];
      ahead.packed = fetched;
      ahead.out = writes ? out + size_t(first + row) * out_stride + size_t(panel) * kPanel + 16 * (g + kPanel / 16 - end) : acc;
      const size_t at = size_t(first + row);
      tile_of<kind, once>(height, group, a.raised + raised_index(a, at, g), raised_half(a), a.scales + scale_index(a, at, g), acc, ahead);
      ahead.spread += 64 * spread_part;
      if (fetches) fetched += 64 * part;
    }
  }
}

template <Kind kind>
void linear(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
            float* out, size_t out_stride, uint8_t* memory) {
  auto& scratch = *reinterpret_cast<Scratch<kind>*>((uintptr_t(memory) + 63) & ~uintptr_t(63));
  const int chunks = (row_end - row_begin + kChunk - 1) / kChunk, parts = (w.groups + kGroups - 1) / kGroups;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const int channel = panel * kPanel, channels = w.n - channel < kPanel ? w.n - channel : kPanel;
    for (int part = 0; part < parts; ++part) {
      const int begin = w.groups * part / parts, end = w.groups * (part + 1) / parts;
      for (int i = 0, first = row_begin; i < chunks; ++i) {
        const int rows = (row_end - first + chunks - i - 1) / (chunks - i);
        for (int r = 0; r < rows; ++r) {
          const float* const from = out + size_t(first + r) * out_stride + channel;
          for (int c = 0; c < kPanel; c += 16) {
            const int count = channels - c < 0 ? 0 : channels - c < 16 ? channels - c : 16;
            store(scratch.acc[r] + c, part ? load_first(from + c, count) : splat(0.0f));
          }
        }
        (chunks == 1 ? chunk_of<kind, true> : chunk_of<kind, false>)(w, a, first, rows, panel, begin, end, i == 0, out, out_stride,
                                                                     scratch);
        for (int r = 0; r < rows; ++r)
          write_row(scratch.acc[r], bias && part + 1 == parts ? bias + channel : nullptr, channels,
                    out + size_t(first + r) * out_stride + channel);
        first += rows;
      }
    }
  }
}

}  // namespace int4

void linear_raised(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
                   float* out, size_t out_stride, uint8_t* scratch) {
  const bool whole = blocks_left(w.kind, w.k, w.groups - 1) == blocks_of(w.kind);  // no block is left out, which could turn -0 into 0
  const bool many = whole && a.raised && row_end - row_begin > kFewRows;
  const auto product = many && w.kind == Kind::int4      ? int4::linear<Kind::int4>
                       : many && w.kind == Kind::int4_64 ? int4::linear<Kind::int4_64>
                       : many && w.kind == Kind::int4_32 ? int4::linear<Kind::int4_32>
                                                         : linear;
  product(w, a, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride, scratch);
}

size_t linear_raised_scratch(int rows) {
  const size_t here = sizeof(int4::Scratch<Kind::int4_32>) + 64, there = linear_scratch(rows);
  return rows <= kFewRows || here < there ? there : here;
}

// As quantize_rows, and raised.
void quantize_rows_raised(const float* x, size_t x_stride, int row_begin, int row_end, Activations& out) {
  quantize_rows(x, x_stride, row_begin, row_end, out);
  if (!out.raised) return;
  const __m512i top_bits = _mm512_set1_epi8(int8_t(0x80));
  for (int row = row_begin; row < row_end; ++row)
    for (int g = 0; g < out.groups; ++g) {
      out.scales[scale_index(out, size_t(row), g)] = out.members[member_index(out.groups, size_t(row), g)].scale;
      for (int t = 0; t < 2; ++t)
        _mm512_store_si512(
            out.raised + raised_index(out, size_t(row), g) + size_t(t) * raised_half(out),
            _mm512_xor_si512(_mm512_load_si512(out.codes + code_index(out.groups, size_t(row), g) + t * kCodesHalf), top_bits));
    }
}

}  // namespace
}  // namespace qwenbox
