// Rounding of activations and products with weights, once a variant, over the vocabulary of vec_*.h. Formulas and the order of the
// accumulations: docs/numeric-contract.md, section Quantised linear. Layout of weights: layout.h.
//
// One path for all row counts: the codes of a (panel, group) are spread to bytes in L1, then blocks of rows run over them with the integer
// sums in registers; the float accumulators of a chunk of rows stay in L1 and L2. Integer sums are exact, so only the float epilogue has an
// order to keep.
#pragma once
#include "layout.h"

namespace qwenbox {
namespace {

constexpr int kChunkRows = 64;  // rows that share one spreading of the codes
constexpr int kAhead = 8192;    // bytes between a read of weights and its prefetch

// What the rows of a chunk share: one group of one panel.
struct alignas(64) Prepared {
  uint8_t bytes[kGroup * kPanel];  // [32 quads][64 channels][4]
  const uint8_t* ahead;            // weights to prefetch while one row is multiplied
  const uint8_t* codes;            // bytes, or the weight itself where its codes are bytes
  float scales[4][kPanel];
  float mins[4][kPanel];
  int32_t sub[4][kPanel];       // pairs of int16: sub-scales of two blocks; int4: -z
  int32_t sub_zero[2][kPanel];  // sub times the zero point
  int32_t sub_min[2][kPanel];
};

// One row of a chunk: its part of the group, and its accumulators.
struct alignas(64) Row {
  float acc[kPanel];
  int32_t start[16];  // -zero_point times 16 of the sums: those of 8, or two more, then those of 16, 32, 128 and 0. Integer sums start from
                      // these.
  const int8_t* codes;
  const RowGroup* member;
};

struct alignas(64) LinearScratch {
  Prepared prepared;
  Row rows[kChunkRows];
};

template <int bits, bool alone, int r>
QWENBOX_INLINE void spread_row(const uint8_t* nibbles, const uint8_t* planes, uint8_t* out) {
  for (int b = 0; b < 4; ++b) {
    if (!alone) prefetch(nibbles + kAhead + 256 * r + 64 * b);
    Bytes both = load_bytes(nibbles + 256 * r + 64 * b), low = low_nibbles(both), high = high_nibbles(both);
    if (bits == 5) {
      low = or_bits<r, 0x10>(low, load_bytes(planes + 64 * b));
      high = or_bits<r, 0x10>(high, load_bytes(planes + 256 + 64 * b));
    }
    if (bits == 6) {
      low = or_bits<2 * (r % 4), 0x30>(low, load_bytes(planes + 256 * (r / 4) + 64 * b));
      high = or_bits<2 * (r % 4), 0x30>(high, load_bytes(planes + 256 * (r / 4 + 2) + 64 * b));
    }
    store(out + 256 * r + 64 * b, low);
    store(out + 256 * (r + 8) + 64 * b, high);
  }
}

template <int bits, bool alone>
QWENBOX_INLINE void spread(const uint8_t* codes, uint8_t* out) {
  constexpr int plane_bytes = bits == 5 ? 512 : bits == 6 ? 1024 : 0;
  for (int t = 0; t < 2; ++t, codes += 2048, out += 4096) {
    const uint8_t* planes = codes + 4096 - 2048 * t + plane_bytes * t;
    spread_row<bits, alone, 0>(codes, planes, out);
    spread_row<bits, alone, 1>(codes, planes, out);
    spread_row<bits, alone, 2>(codes, planes, out);
    spread_row<bits, alone, 3>(codes, planes, out);
    spread_row<bits, alone, 4>(codes, planes, out);
    spread_row<bits, alone, 5>(codes, planes, out);
    spread_row<bits, alone, 6>(codes, planes, out);
    spread_row<bits, alone, 7>(codes, planes, out);
  }
}

QWENBOX_INLINE void prefetch_lines(const uint8_t* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) prefetch(p + kAhead + i);
}

QWENBOX_INLINE void widen_f16(const uint8_t* p, int lines, float (*out)[kPanel]) {
  for (int i = 0; i < 4 * lines; ++i) store(out[0] + 16 * i, load_f16((const uint16_t*)p + 16 * i));
}
QWENBOX_INLINE void widen_pairs(const uint8_t* p, int lines, int32_t (*out)[kPanel]) {
  for (int i = 0; i < 4 * lines; ++i) store(out[0] + 16 * i, load_i8_pairs((const int8_t*)p + 32 * i));
}

constexpr bool has_blocks32(Kind kind) { return kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q5_0 || kind == Kind::q8_0; }
constexpr bool has_sub_mins(Kind kind) { return kind == Kind::q4_k || kind == Kind::q5_k; }
constexpr bool is_k_quant(Kind kind) { return has_sub_mins(kind) || kind == Kind::q6_k; }

// Lines to prefetch in `quads` quads of so many channels, for all of a group in the end.
constexpr int lines_in(Kind kind, int channels, int quads) {
  const Layout layout = layout_of(kind);
  const int lines = (layout.group_bytes() + layout.scale_bytes / layout.unit_groups) / 64, parts = kPanel / channels * (32 / quads);
  return (lines + parts - 1) / parts;
}

// alone: for one row, which prefetches by itself.
template <Kind kind, bool alone>
void prepare(const uint8_t* panel, int g, Prepared& p) {
  constexpr Layout layout = layout_of(kind);
  constexpr int nibble_bytes = layout.bits == 8 ? 0 : 4096;  // spread() prefetches those
  const uint8_t *codes = panel + group_offset(layout, g), *sub = codes + layout.code_bytes(), *scales = panel + scale_offset(layout, g);
  p.codes = codes;
  if (layout.bits != 8) {
    spread<layout.bits, alone>(codes, p.bytes);
    p.codes = p.bytes;
  }
  p.ahead = codes + kAhead;
  if (!alone) {
    prefetch_lines(codes + nibble_bytes, layout.group_bytes() - nibble_bytes);
    prefetch_lines(scales, layout.scale_bytes);
  }
  widen_f16(scales, has_blocks32(kind) ? 4 : 1, p.scales);
  if (kind == Kind::q4_1) widen_f16(scales + 512, 4, p.mins);
  if (is_k_quant(kind)) widen_pairs(sub, kind == Kind::q6_k ? 4 : 2, p.sub);
  if (has_sub_mins(kind)) {
    widen_pairs(sub + 256, 2, p.sub_min);
    for (int i = 0; i < 8; ++i) store(p.sub_zero[0] + 16 * i, shift_left<kind == Kind::q4_k ? 3 : 4>(load_ints(p.sub[0] + 16 * i)));
    widen_f16(scales + 128, 1, p.mins);
    for (int i = 0; i < 4; ++i) store(p.mins[0] + 16 * i, load(p.mins[0] + 16 * i) * splat(-1.0f));
  }
  if (kind == Kind::int4)
    for (int i = 0; i < 4; ++i) store(p.sub[0] + 16 * i, load_i16((const int16_t*)(scales + 128) + 16 * i));
}

// sums[m][b] += quads [q, q + quads) of the codes times those of the rows; they lie in one half of the group.
template <Kind kind, int quads, int MR, int NB>
QWENBOX_INLINE void add_dots(Ints (&sums)[MR][NB], const Prepared& p, const Row* rows, int q, int c) {
  constexpr bool wide = layout_of(kind).bits == 8;
  const uint8_t* codes = p.codes + 4 * c;
  const int offset = q / 16 * kCodesHalf + q % 16 * 4;
  // One row leaves time between its products for the prefetches of a later group; many rows share those of prepare().
  constexpr int lines = MR == 1 ? lines_in(kind, 16 * NB, quads) : 0;
  const uint8_t* ahead = p.ahead + (c / (16 * NB) * (32 / quads) + q / quads) * lines * 64;
#pragma GCC unroll 16
  for (int i = 0; i < quads; ++i) {
    for (int line = i * lines / quads; line < (i + 1) * lines / quads; ++line) prefetch(ahead + 64 * line);
    Bytes w[NB];
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) w[b] = load_bytes(codes + 256 * (q + i) + 64 * b);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      Ints a = load_quad(rows[m].codes + offset + 4 * i);
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) sums[m][b] = dot4<wide>(sums[m][b], w[b], a);
    }
  }
}

template <int MR, int NB, class F>
QWENBOX_INLINE void each(F f) {
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) f(m, b);
}

// acc = fma(value * scale, sa, acc) for 16 channels from c on.
QWENBOX_INLINE void accumulate(Row& row, int c, Floats value, const float* scales) {
  store(row.acc + c, fma(value * load(scales + c), splat(row.member->scale), load(row.acc + c)));
}

QWENBOX_INLINE Ints load_sum_pair(const int16_t* p) { return load_quad((const int8_t*)p); }

// Scales per 32 inputs.
template <Kind kind, int MR, int NB>
QWENBOX_INLINE void tile_blocks32(const Prepared& p, int blocks, Row* rows, int c) {
  for (int j = 0; j < blocks; ++j) {
    Ints sums[MR][NB];
    each<MR, NB>([&](int m, int b) { sums[m][b] = splat(kind == Kind::q4_1 ? 0 : rows[m].start[10 + j]); });
    add_dots<kind, 8>(sums, p, rows, 8 * j, c);
    each<MR, NB>([&](int m, int b) { accumulate(rows[m], c + 16 * b, to_floats(sums[m][b]), p.scales[j]); });
    if (kind == Kind::q4_1) {
      Floats input_sums[MR];
      for (int m = 0; m < MR; ++m) input_sums[m] = splat(float(rows[m].member->sums[24 + j]));
      each<MR, NB>([&](int m, int b) { accumulate(rows[m], c + 16 * b, input_sums[m], p.mins[j]); });
    }
    // The accumulators belong in memory: there are no registers left for them.
    __asm__ volatile("" ::: "memory");
  }
}

// One scale for the group.
template <Kind kind, int MR, int NB>
QWENBOX_INLINE void tile_group(const Prepared& p, Row* rows, int c) {
  Ints sums[MR][NB];
  each<MR, NB>([&](int m, int b) { sums[m][b] = splat(kind == Kind::int4 ? 0 : rows[m].start[14]); });
  for (int t = 0; t < 2; ++t) add_dots<kind, 16>(sums, p, rows, 16 * t, c);
  if (kind == Kind::int4)
    each<MR, NB>(
        [&](int m, int b) { sums[m][b] = dot2(sums[m][b], load_ints(p.sub[0] + c + 16 * b), load_sum_pair(rows[m].member->sums + 28)); });
  each<MR, NB>([&](int m, int b) { accumulate(rows[m], c + 16 * b, to_floats(sums[m][b]), p.scales[0]); });
}

// Integer sub-scales. With the zero point taken off, a part of a block sums to an int16, |sum| <= zero_point * 127 * inputs <= 32512, so
// two blocks are scaled at a time by dot2. q4_k and q5_k have no zero point: what was taken off is put back by sub_zero.
template <Kind kind, int MR, int NB>
QWENBOX_INLINE void tile_k_quant(const Prepared& p, Row* rows, int c) {
  constexpr int pairs = kind == Kind::q6_k ? 4 : 2, parts = kind == Kind::q4_k ? 1 : 2, quads = 16 / (pairs * parts);
  constexpr int first = kind == Kind::q4_k ? 10 : kind == Kind::q5_k ? 2 : 0;  // in start: sums of 32, of 16, of 8
  Ints total[MR][NB];
  each<MR, NB>([&](int m, int b) { total[m][b] = splat(0); });
  for (int i = 0; i < pairs; ++i)
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part) {
      const int even = 2 * i * parts + part, odd = even + parts;
      Ints lo[MR][NB], hi[MR][NB];
      each<MR, NB>([&](int m, int b) { lo[m][b] = splat(rows[m].start[first + even]), hi[m][b] = splat(rows[m].start[first + odd]); });
      add_dots<kind, quads>(lo, p, rows, quads * even, c);
      add_dots<kind, quads>(hi, p, rows, quads * odd, c);
      each<MR, NB>([&](int m, int b) { total[m][b] = dot2(total[m][b], pair(lo[m][b], hi[m][b]), load_ints(p.sub[i] + c + 16 * b)); });
    }
  if (has_sub_mins(kind))
    each<MR, NB>([&](int m, int b) {
      for (int i = 0; i < 2; ++i)
        total[m][b] = dot2(total[m][b], load_ints(p.sub_zero[i] + c + 16 * b), load_sum_pair(rows[m].member->sums + 24 + 2 * i));
    });
  each<MR, NB>([&](int m, int b) { accumulate(rows[m], c + 16 * b, to_floats(total[m][b]), p.scales[0]); });
  if (has_sub_mins(kind))
    each<MR, NB>([&](int m, int b) {
      Ints mins = splat(0);
      for (int i = 0; i < 2; ++i) mins = dot2(mins, load_ints(p.sub_min[i] + c + 16 * b), load_sum_pair(rows[m].member->sums + 24 + 2 * i));
      accumulate(rows[m], c + 16 * b, to_floats(mins), p.mins[0]);
    });
}

// MR rows over one group; `blocks`: how many 32-blocks of it the weight has. Not inlined, or the caller's values crowd the registers.
template <Kind kind, int MR>
__attribute__((noinline)) void tile(const Prepared& p, int blocks, Row* rows) {
  // K-quants keep three sets of sums at once.
  constexpr int NB = is_k_quant(kind) && kTileBlocks > 1 ? kTileBlocks / 2 : kTileBlocks;
  for (int c = 0; c < kPanel; c += 16 * NB) {
    if (is_k_quant(kind))
      tile_k_quant<kind, MR, NB>(p, rows, c);
    else if (has_blocks32(kind))
      tile_blocks32<kind, MR, NB>(p, blocks, rows, c);
    else
      tile_group<kind, MR, NB>(p, rows, c);
  }
}

template <Kind kind>
QWENBOX_INLINE void gather(const Activations& a, int g, size_t index, Row& row) {
  constexpr int zero_point = layout_of(kind).zero_point;
  row.codes = a.codes + code_index(a.groups, index, g);
  row.member = a.members + member_index(a.groups, index, g);
  if (zero_point != 0)
    store(row.start, dot2(splat(0), load_i16(row.member->sums + (kind == Kind::q6_k ? 0 : 14)), splat(-zero_point & 0xFFFF)));
}

inline void write_row(const float* acc, const float* bias, int channels, float* out) {
  for (int c = 0; c < channels; c += 16) {
    const int count = channels - c < 16 ? channels - c : 16;
    Floats y = load(acc + c);
    if (bias) y = y + load_first(bias + c, count);
    store_first(out + c, y, count);
  }
}

template <Kind kind>
void linear_of(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
               float* out, size_t out_stride, LinearScratch& scratch) {
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
    const int channel = panel * kPanel, channels = w.n - channel < kPanel ? w.n - channel : kPanel;
    for (int chunk = row_begin; chunk < row_end; chunk += kChunkRows) {
      const int rows = row_end - chunk < kChunkRows ? row_end - chunk : kChunkRows;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < kPanel; c += 16) store(scratch.rows[r].acc + c, splat(0.0f));
      for (int g = 0; g < w.groups; ++g) {
        if (rows == 1)
          prepare<kind, true>(base, g, scratch.prepared);
        else
          prepare<kind, false>(base, g, scratch.prepared);
        for (int r = 0; r < rows; ++r) gather<kind>(a, g, size_t(chunk + r), scratch.rows[r]);
        const int left = (w.k - g * kGroup + 31) / 32, blocks = left < 4 ? left : 4;
        int r = 0;
        for (; r + kTileRows <= rows; r += kTileRows) tile<kind, kTileRows>(scratch.prepared, blocks, scratch.rows + r);
        for (; r < rows; ++r) tile<kind, 1>(scratch.prepared, blocks, scratch.rows + r);
      }
      for (int r = 0; r < rows; ++r)
        write_row(scratch.rows[r].acc, bias ? bias + channel : nullptr, channels, out + size_t(chunk + r) * out_stride + channel);
    }
  }
}

void linear(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
            float* out, size_t out_stride, uint8_t* scratch) {
  auto& aligned = *reinterpret_cast<LinearScratch*>((uintptr_t(scratch) + 63) & ~uintptr_t(63));
  auto run = [&](auto function) { function(w, a, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride, aligned); };
  switch (w.kind) {
    case Kind::q4_0:
      return run(linear_of<Kind::q4_0>);
    case Kind::q4_1:
      return run(linear_of<Kind::q4_1>);
    case Kind::q5_0:
      return run(linear_of<Kind::q5_0>);
    case Kind::q8_0:
      return run(linear_of<Kind::q8_0>);
    case Kind::q4_k:
      return run(linear_of<Kind::q4_k>);
    case Kind::q5_k:
      return run(linear_of<Kind::q5_k>);
    case Kind::q6_k:
      return run(linear_of<Kind::q6_k>);
    case Kind::int4:
      return run(linear_of<Kind::int4>);
    case Kind::int8:
      return run(linear_of<Kind::int8>);
    default:
      return;  // dense kinds: linear_dense
  }
}

size_t linear_scratch(int) { return sizeof(LinearScratch) + 64; }

// --- dense weights -----------------------------------------------------------------------------------------------

template <Kind kind>
QWENBOX_INLINE Floats load_dense(const uint8_t* p) {
  if (kind == Kind::f32) return load((const float*)p);
  return kind == Kind::f16 ? load_f16((const uint16_t*)p) : load_bf16((const uint16_t*)p);
}

template <Kind kind, int MR, int NB>
void dense_tile(const uint8_t* base, int k, const float* x, size_t x_stride, float (*acc)[kPanel]) {
  constexpr int size = layout_of(kind).bits / 8;
  for (int c = 0; c < kPanel; c += 16 * NB) {
    const uint8_t* p = base + size * c;
    Floats sums[MR][NB];
    each<MR, NB>([&](int m, int b) { sums[m][b] = splat(0.0f); });
    for (int i = 0; i < k; ++i, p += size * kPanel) {
      for (int line = 0; line < 16 * NB * size; line += 64) prefetch(p + kAhead + line);
      Floats w[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) w[b] = load_dense<kind>(p + 16 * size * b);
      each<MR, NB>([&](int m, int b) { sums[m][b] = fma(w[b], splat(x[m * x_stride + i]), sums[m][b]); });
    }
    each<MR, NB>([&](int m, int b) { store(acc[m] + c + 16 * b, sums[m][b]); });
  }
}

template <Kind kind>
void dense_of(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
              const float* bias, float* out, size_t out_stride) {
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
    const int channel = panel * kPanel, channels = w.n - channel < kPanel ? w.n - channel : kPanel;
    for (int row = row_begin; row < row_end;) {
      alignas(64) float acc[kTileRows][kPanel];
      const int rows = row_end - row < kTileRows ? 1 : kTileRows;
      if (rows == 1)
        dense_tile<kind, 1, 4>(base, w.k, x + size_t(row) * x_stride, x_stride, acc);
      else
        dense_tile<kind, kTileRows, kTileBlocks>(base, w.k, x + size_t(row) * x_stride, x_stride, acc);
      for (int r = 0; r < rows; ++r)
        write_row(acc[r], bias ? bias + channel : nullptr, channels, out + size_t(row + r) * out_stride + channel);
      row += rows;
    }
  }
}

void linear_dense(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
                  const float* bias, float* out, size_t out_stride) {
  auto run = [&](auto function) { function(w, x, x_stride, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride); };
  switch (w.kind) {
    case Kind::f32:
      return run(dense_of<Kind::f32>);
    case Kind::f16:
      return run(dense_of<Kind::f16>);
    case Kind::bf16:
      return run(dense_of<Kind::bf16>);
    default:
      return;  // quantised kinds: linear
  }
}

// --- activations -------------------------------------------------------------------------------------------------

// One group; inputs past `count` count as zeros.
inline void quantize_group(const float* x, int count, int8_t* codes, RowGroup& member) {
  Floats values[8];
  Ints magnitude = splat(0);
  for (int i = 0; i < 8; ++i) {
    const int left = count - 16 * i;
    values[i] = left >= 16 ? load(x + 16 * i) : left > 0 ? load_first(x + 16 * i, left) : splat(0.0f);
    magnitude = max(magnitude, bits(values[i]) & splat(0x7FFFFFFF));  // as integers: order of magnitude, Inf and NaN on top
  }
  const int32_t top = reduce_max(magnitude);
  float amax, scale = 0.0f, r = 0.0f;
  __builtin_memcpy(&amax, &top, 4);
  const bool finite = top < 0x7F800000;
  if (finite && amax > 0.0f) r = 127.0f / amax;
  if (r > 0.0f && r <= 3.402823466e38f)
    scale = amax / 127.0f;
  else
    r = 0.0f;
  if (!finite) scale = __builtin_nanf("");
  alignas(64) int8_t rounded[kGroup];
  for (int i = 0; i < 8; ++i) {
    Floats code = scale > 0.0f ? min(splat(127.0f), max(splat(-127.0f), rint(values[i] * splat(r)))) : splat(0.0f);
    store_i8(rounded + 16 * i, to_ints(code));
  }
  __builtin_memcpy(codes, rounded, 64);
  __builtin_memcpy(codes + kCodesHalf, rounded + 64, 64);
  alignas(64) uint8_t ones[64];
  alignas(64) int32_t sums4[32];
  __builtin_memset(ones, 1, sizeof ones);
  for (int t = 0; t < 2; ++t) {
    int32_t half[16];
    __builtin_memcpy(half, rounded + 64 * t, 64);
    store(sums4 + 16 * t, dot4<false>(splat(0), load_bytes(ones), load_ints(half)));
  }
  int16_t* sums = member.sums;
  for (int i = 0; i < 16; ++i) sums[i] = int16_t(sums4[2 * i] + sums4[2 * i + 1]);
  for (int i = 0; i < 8; ++i) sums[16 + i] = int16_t(sums[2 * i] + sums[2 * i + 1]);
  for (int i = 0; i < 4; ++i) sums[24 + i] = int16_t(sums[16 + 2 * i] + sums[17 + 2 * i]);
  sums[28] = int16_t(sums[24] + sums[25] + sums[26] + sums[27]);
  sums[29] = 0;
  member.scale = scale;
}

void quantize_rows(const float* x, size_t stride, int row_begin, int row_end, Activations& out) {
  for (int row = row_begin; row < row_end; ++row)
    for (int g = 0; g < out.groups; ++g)
      quantize_group(x + size_t(row) * stride + g * kGroup, out.k - g * kGroup, out.codes + code_index(out.groups, size_t(row), g),
                     out.members[member_index(out.groups, size_t(row), g)]);
}

}  // namespace
}  // namespace qwenbox
