// Rounding of activations and products with weights, once a variant, over the vocabulary of vec_*.h. Formulas and the order of the
// accumulations: docs/numeric-contract.md, section Quantised linear. Layout of weights: layout.h.
//
// A few rows read the codes as they lie in memory and unpack them in registers; for more rows the codes of a (panel, group) are spread to
// bytes in L1 and their scales widened, once for a chunk of rows. Either way a tile of rows by blocks of 16 channels runs over the group
// with its integer sums in registers; the float accumulators of the chunk stay in L1 and L2. Integer sums are exact, so only the float
// epilogue has an order to keep.
#pragma once
#include <type_traits>

#include "layout.h"

namespace qwenbox {
namespace {

constexpr int kTwoSumsRows = 4;  // of a tile over packed codes: for more, two sums each are too many for the registers
constexpr int kChunkRows = 64;   // rows that share one spreading of the codes

// One row of a chunk: its part of the group, its accumulators, and where they are written at last.
struct Row {
  const int8_t* codes;
  const RowGroup* member;
  float* acc;  // [64 channels]
  float* out;
};

// -zero_point times 16 of a row's sums: those of 8, or two more, then those of 16, 32, 128 and 0. Integer sums start from these.
template <Kind kind, int MR>
struct Starts {
  alignas(64) int32_t values[MR][16];
  explicit Starts(const Row* rows) {
    constexpr int zero_point = layout_of(kind).zero_point;
    for (int m = 0; m < MR; ++m)
      store(values[m], dot2(splat(0), load_i16(rows[m].member->sums + (kind == Kind::q6_k ? 0 : 14)), splat(-zero_point & 0xFFFF)));
  }
};

constexpr bool has_sub_mins(Kind kind) { return kind == Kind::q4_k || kind == Kind::q5_k; }
constexpr bool has_group_scale(Kind kind) { return kind == Kind::int4 || kind == Kind::int8 || kind == Kind::uint8; }

// Inputs of one integer sum, in quads: a sub-scale belongs to each sum. q6_k: half of its 16-block, so that the sum fits an int16.
constexpr int quads_of(Kind kind) { return kind == Kind::q6_k ? 2 : 8; }

template <int from, int to, class F>
QWENBOX_INLINE void steps(F f) {
  if constexpr (from < to) {
    f(std::integral_constant<int, from>{});
    steps<from + 1, to>(f);
  }
}

template <int MR, int NB, class F>
QWENBOX_INLINE void each(F f) {
#pragma GCC unroll 8
  for (int b = 0; b < NB; ++b)
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) f(m, b);
}

// Quad q of a half of the group, of 16 channels: low nibbles hold the first eight, high ones the others. planes: the fifth bits, or bits 4
// and 5, of the same half.
template <int bits, int q>
QWENBOX_INLINE Bytes code(const uint8_t* nibbles, const uint8_t* planes) {
  const Bytes both = load_bytes(nibbles), four = q < 8 ? low_nibbles(both) : high_nibbles(both);
  if (bits == 5) return or_bits<q % 8, 0x10>(four, load_bytes(planes + 256 * (q / 8)));
  if (bits == 6) return or_bits<2 * (q % 4), 0x30>(four, load_bytes(planes + 256 * (q / 4)));
  return four;
}

// Where dot4 keeps short sums, a run of quads is added up in them and then folded into the sums, or scaled as it is where an integer
// sub-scale belongs to it. High nibbles that are multiplied where they lie have a run of their own too, which is 16 times too large.
template <Kind kind>
constexpr int kShort = kShortQuads<layout_of(kind).bits>;
template <Kind kind>
constexpr bool kScaleShort = kShort<kind> == quads_of(kind) && (kind == Kind::q4_k || kind == Kind::q6_k);
template <Kind kind>
constexpr int run_of(int quads) {
  return kShort<kind> != 0 && kShort<kind> < quads ? kShort<kind> : quads;
}
template <Kind kind, bool in_place = false, int MR, int NB>
QWENBOX_INLINE void begin_run(Ints (&run)[MR][NB], const Ints (&sums)[MR][NB]) {
  each<MR, NB>([&](int m, int b) { run[m][b] = kShort<kind> != 0 || in_place ? zeros() : sums[m][b]; });
}
template <Kind kind, bool in_place = false, int MR, int NB>
QWENBOX_INLINE void end_run(const Ints (&run)[MR][NB], Ints (&sums)[MR][NB]) {
  each<MR, NB>([&](int m, int b) {
    if (in_place)
      sums[m][b] = sums[m][b] + shift_right_signed<4>(run[m][b]);
    else
      sums[m][b] = kShort<kind> != 0 && !kScaleShort<kind> ? fold(sums[m][b], run[m][b]) : run[m][b];
  });
}

// Both nibbles of a byte one after the other, although each has short sums only: where a group has one scale, they share them.
template <Kind kind>
constexpr bool kJoinNibbles = kSplitNibbles && layout_of(kind).bits == 4 && has_group_scale(kind) && kShort<kind> != 0;

// Into L2, where memory answers to more requests than from L1; on some processors later into L1, so that lines arrive in the order of their
// addresses whatever the order in which a tile reads them.
template <Kind kind>
QWENBOX_INLINE void fetch_line(const uint8_t* p) {
  if (kAheadInOrder != 0 && (layout_of(kind).bits == 8 || kJoinNibbles<kind>)) return prefetch_far(p + kAheadInOrder);
  prefetch_far(p + kAhead);
  if (kNear != 0) prefetch(p + kNear);
}

// sums += `quads` quads, the first of which is q, times those of the rows; they lie in one half of the group. codes: bytes of 16 NB
// channels.
template <Kind kind, int quads, int MR, int NB>
QWENBOX_INLINE void add_dots(Ints (&sums)[MR][NB], const uint8_t* codes, const Row* rows, int q) {
  constexpr int run = run_of<kind>(quads);
  const int offset = q / 16 * kCodesHalf + q % 16 * 4;
#pragma GCC unroll 4
  for (int first = 0; first < quads; first += run) {
    Ints added[MR][NB];
    begin_run<kind>(added, sums);
#pragma GCC unroll 8
    for (int i = first; i < first + run; ++i) {
      Bytes w[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) {
        const uint8_t* p = codes + 256 * (q + i) + 64 * b;
        w[b] = hold(load_bytes(p));
      }
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const Ints a = load_quad(rows[m].codes + offset + 4 * i);
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) added[m][b] = dot4<layout_of(kind).bits>(added[m][b], w[b], a);
      }
    }
    end_run<kind>(added, sums);
  }
}

// One group of one panel as it lies in memory.
template <Kind kind>
struct Packed {
  static constexpr Layout layout = layout_of(kind);
  // Quads r and r + 8 come together where there are registers for both. More than a few rows add both to one sum, where a group has one
  // scale.
  template <int MR, int NB>
  static constexpr bool fits_both = kShort<kind> != 0 && !kJoinNibbles<kind> && layout.bits == 4 && MR * NB <= kPackedBlocksBeside;
  template <int MR, int NB>
  static constexpr bool split_nibbles = kSplitNibbles && !fits_both<MR, NB>;
  template <int MR, int NB>
  static constexpr bool two_sums =
      layout.bits != 8 && !split_nibbles<MR, NB> && !(has_group_scale(kind) && kShort<kind> == 0 && MR > kTwoSumsRows);
  const uint8_t *codes, *subs, *scales;

  Packed(const uint8_t* panel, int g)
      : codes(panel + group_offset(layout, g)), subs(codes + layout.code_bytes()), scales(panel + scale_offset(layout, g)) {}

  const uint8_t* half_nibbles(int t, int c) const { return codes + 2048 * t + 4 * c; }
  const uint8_t* half_planes(int t, int c) const { return codes + 4096 + (layout.bits == 5 ? 512 : 1024) * t + 4 * c; }

  // Step `step` of `steps` of half t of the pass over the channels from c on: its share of what comes, scales too, evenly, because lines
  // that are asked for at once hold up the loads behind them. Where two groups share a unit, its scales are asked for twice.
  template <int NB, int step, int steps>
  QWENBOX_INLINE void fetch(int t, int c) const {
    constexpr int halves = 2 * 4 / NB, lines = ((layout.group_bytes() + layout.scale_bytes) / 64 + halves - 1) / halves;
    const uint8_t* from = codes + 64 * lines * (c / (8 * NB) + t);
#pragma GCC unroll 8
    for (int i = step * lines / steps; i < (step + 1) * lines / steps; ++i) fetch_line<kind>(from + 64 * i);
  }
  Floats scale(int j, int c) const { return load_f16((const uint16_t*)scales + 64 * j + c); }
  Floats min(int j, int c) const {  // negative for K-quants
    const Floats m = load_f16((const uint16_t*)scales + (kind == Kind::q4_1 ? 256 : 64) + 64 * j + c);
    return kind == Kind::q4_1 ? m : m * splat(-1.0f);
  }
  Ints sub_pairs(int i, int c) const { return load_i8_pairs((const int8_t*)subs + 128 * i + 2 * c); }
  Ints sub(int j, int c) const {  // the low int16, and no high one; for short sums both
    const Ints pairs = sub_pairs(j / 2, c);
    if (kScaleShort<kind>) return j % 2 ? both_high(pairs) : both_low(pairs);
    return j % 2 ? shift_right<16>(pairs) : pairs & splat(0xFFFF);
  }
  Floats factor(int j, int c) const { return to_floats(sub(j, c)); }
  Ints sub_mins(int i, int c) const { return load_i8_pairs((const int8_t*)subs + 256 + 128 * i + 2 * c); }
  // To be multiplied by the sum of the group, or by those of its blocks of 32 from the block's first on.
  Ints minus_zero(int j, int c) const {
    if (blocks_of(kind) == 1) return load_i16((const int16_t*)scales + 64 + c);
    if (blocks_of(kind) == 4) return sub(j, c);
    return j % 2 ? both_high(sub_pairs(0, c)) : both_low(sub_pairs(0, c));
  }

  // Sums of half t of the group, channels from c on: start(part, m, b) gives where a sum starts, finish(part, sums) takes it.
  template <int MR, int NB, class Start, class Finish>
  QWENBOX_INLINE void half(int t, int c, const Row* rows, Start start, Finish finish) const {
    constexpr int quads = quads_of(kind);
    if constexpr (layout.bits == 8) {
      steps<0, 16 / quads>([&](auto step) __attribute__((always_inline)) {
        constexpr int i = decltype(step)::value;
        const int part = 16 * t / quads + i;
        Ints sums[MR][NB];
        each<MR, NB>([&](int m, int b) { sums[m][b] = start(part, m, b); });
        steps<quads * i, quads * i + quads>([&](auto at) __attribute__((always_inline)) {
          fetch<NB, decltype(at)::value, 16>(t, c);
          add_dots<kind, 1>(sums, codes + 4 * c, rows, 16 * t + decltype(at)::value);
        });
        finish(part, sums);
      });
    } else {
      if constexpr (split_nibbles<MR, NB>) return split<MR, NB>(t, c, rows, start, finish);
      const uint8_t *nibbles = half_nibbles(t, c), *planes = half_planes(t, c);
      steps<0, 8 / quads>([&](auto step) __attribute__((always_inline)) {
        constexpr int i = decltype(step)::value;
        const int low_part = 16 * t / quads + i, high_part = low_part + 8 / quads;
        constexpr bool two = two_sums<MR, NB>;
        Ints low[MR][NB], high[MR][NB], low_run[MR][NB], own_run[MR][NB];
        each<MR, NB>([&](int m, int b) { low[m][b] = start(low_part, m, b); });
        if (two) each<MR, NB>([&](int m, int b) { high[m][b] = start(high_part, m, b); });
        Ints(&high_run)[MR][NB] = two ? own_run : low_run;
        steps<quads * i, quads * i + quads>([&](auto at) __attribute__((always_inline)) {
          constexpr int r = decltype(at)::value, run = run_of<kind>(quads);
          if (r % run == 0) begin_run<kind>(low_run, low);
          if (two && r % run == 0) begin_run<kind>(high_run, high);
          Bytes w[2][NB];
          steps<0, NB>([&](auto block) __attribute__((always_inline)) {
            constexpr int b = decltype(block)::value;
            fetch<NB, NB * r + b, 8 * NB>(t, c);
            w[0][b] = hold(code<layout.bits, r>(nibbles + 256 * r + 64 * b, planes + 64 * b));
            w[1][b] = hold(code<layout.bits, r + 8>(nibbles + 256 * r + 64 * b, planes + 64 * b));
          });
#pragma GCC unroll 8
          for (int m = 0; m < MR; ++m) {
            const Ints a = load_quad(rows[m].codes + t * kCodesHalf + 4 * r), b8 = load_quad(rows[m].codes + t * kCodesHalf + 4 * r + 32);
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) {
              low_run[m][b] = dot4<layout.bits>(low_run[m][b], w[0][b], a);
              if (two) high_run[m][b] = dot4<layout.bits>(high_run[m][b], w[1][b], b8);
            }
          }
#pragma GCC unroll 8
          for (int m = 0; m < MR; ++m) {
            if (two) continue;
            const Ints b8 = load_quad(rows[m].codes + t * kCodesHalf + 4 * r + 32);
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) low_run[m][b] = dot4<layout.bits>(low_run[m][b], w[1][b], b8);
          }
          if ((r + 1) % run == 0) end_run<kind>(low_run, low);
          if (two && (r + 1) % run == 0) end_run<kind>(high_run, high);
        });
        finish(low_part, low);
        if (two) finish(high_part, high);
      });
    }
  }
  // The same, low nibbles before high ones, or after each.
  template <int MR, int NB, class Start, class Finish>
  QWENBOX_INLINE void split(int t, int c, const Row* rows, Start start, Finish finish) const {
    constexpr bool joined = kJoinNibbles<kind>;
    constexpr int quads = joined ? 16 : quads_of(kind), run_quads = run_of<kind>(quads);
    const uint8_t *nibbles = half_nibbles(t, c), *planes = half_planes(t, c);
    steps<0, 16 / quads>([&](auto step) __attribute__((always_inline)) {
      constexpr int first = quads * decltype(step)::value;
      const int part = 16 * t / quads + first / quads;
      Ints sums[MR][NB], run[MR][NB];
      each<MR, NB>([&](int m, int b) { sums[m][b] = start(part, m, b); });
      steps<first, first + quads>([&](auto at) __attribute__((always_inline)) {
        constexpr int place = decltype(at)::value, q = joined ? place / 2 + place % 2 * 8 : place;
        constexpr bool in_place = kHighInPlace && layout.bits == 4 && q >= 8;
        if (place % run_quads == 0) begin_run<kind, in_place>(run, sums);
        fetch<NB, place, 16>(t, c);
        __asm__("" : "+r"(nibbles), "+r"(planes));  // or GCC keeps what two quads share, for want of registers on the stack
        Bytes w[NB];
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) {
          const uint8_t* p = nibbles + 256 * (q % 8) + 64 * b;
          w[b] = hold(in_place ? high_in_place(load_bytes(p)) : code<layout.bits, q>(p, planes + 64 * b));
        }
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const Ints a = load_quad(rows[m].codes + t * kCodesHalf + 4 * q);
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) run[m][b] = dot4<layout.bits>(run[m][b], w[b], a);
        }
        if ((place + 1) % run_quads == 0) end_run<kind, in_place>(run, sums);
      });
      finish(part, sums);
    });
  }
};

// One group of one panel, spread and widened for the rows of a chunk.
template <Kind kind>
struct alignas(64) Prepared {
  static constexpr Layout layout = layout_of(kind);
  template <int, int>
  static constexpr bool two_sums = false;
  uint8_t bytes[kGroup * kPanel];  // [32 quads][64 channels][4]
  float scales[4][kPanel], mins[4][kPanel], factors[4][kPanel];
  int32_t subs[8][kPanel], pairs[2][kPanel];
  const uint8_t* codes;  // bytes, or the weight itself where its codes are bytes
  const uint8_t* ahead;  // the next group

  Floats scale(int j, int c) const { return load(scales[j] + c); }
  Floats min(int j, int c) const { return load(mins[j] + c); }
  Ints sub(int j, int c) const { return load_ints(subs[j] + c); }
  Ints sub_pairs(int i, int c) const { return pair(sub(2 * i, c), sub(2 * i + 1, c)); }
  Floats factor(int j, int c) const { return load(factors[j] + c); }
  Ints sub_mins(int i, int c) const { return load_ints(pairs[i] + c); }
  Ints minus_zero(int j, int c) const { return load_ints(subs[j] + c); }

  void prepare(const uint8_t* panel, int g) {
    const Packed<kind> from(panel, g);
    codes = from.codes;
    ahead = panel + group_offset(layout, g + 1);
    if constexpr (layout.bits != 8) {
      spread(codes);
      codes = bytes;
    }
    for (int c = 0; c < kPanel; c += 16) {
      for (int j = 0; j < blocks_of(kind); ++j) store(scales[j] + c, from.scale(j, c));
      if (kind == Kind::q4_1 || has_sub_mins(kind))
        for (int j = 0; j < (kind == Kind::q4_1 ? 4 : 1); ++j) store(mins[j] + c, from.min(j, c));
      if (has_sub_mins(kind)) {
        if (!kScaleShort<kind>)
          for (int j = 0; j < 4; ++j) store(factors[j] + c, from.factor(j, c));
        for (int i = 0; i < 2; ++i) store(pairs[i] + c, from.sub_mins(i, c));
      }
      if (kind == Kind::q6_k || kScaleShort<kind>)
        for (int j = 0; j < (kind == Kind::q6_k ? 8 : 4); ++j) store(subs[j] + c, from.sub(j, c));
      if (has_zeros(kind))
        for (int j = 0; j < blocks_of(kind); ++j) store(subs[j] + c, from.minus_zero(j, c));
    }
  }

  QWENBOX_INLINE void spread(const uint8_t* from) {
    constexpr int plane_bytes = layout.bits == 5 ? 512 : layout.bits == 6 ? 1024 : 0;
    for (int t = 0; t < 2; ++t) {
      const uint8_t *nibbles = from + 2048 * t, *planes = from + 4096 + plane_bytes * t;
      uint8_t* const out = bytes + 4096 * t;
      steps<0, 8>([&](auto at) {
        constexpr int r = decltype(at)::value;
        for (int b = 0; b < 4; ++b) {
          store(out + 256 * r + 64 * b, code<layout.bits, r>(nibbles + 256 * r + 64 * b, planes + 64 * b));
          store(out + 256 * (r + 8) + 64 * b, code<layout.bits, r + 8>(nibbles + 256 * r + 64 * b, planes + 64 * b));
        }
      });
    }
  }

  template <int MR, int NB, class Start, class Finish>
  QWENBOX_INLINE void half(int t, int c, const Row* rows, Start start, Finish finish) const {
    constexpr int quads = quads_of(kind);
    int end = 16 * t + 16;
    if (kUnrolledSums == 1) __asm__("" : "+r"(end));  // or GCC unrolls them all the same
#pragma GCC unroll kUnrolledSums
    for (int q = 16 * t; q < end; q += quads) {
      Ints sums[MR][NB];
      each<MR, NB>([&](int m, int b) { sums[m][b] = start(q / quads, m, b); });
      add_dots<kind, quads>(sums, codes + 4 * c, rows, q);
      finish(q / quads, sums);
    }
  }
};

struct alignas(64) LinearScratch {
  float acc[kChunkRows][kPanel];
  Row rows[kChunkRows];
  uint8_t prepared[sizeof(Prepared<Kind::q6_k>)];
};

QWENBOX_INLINE Ints load_sum_pair(const int16_t* p) { return load_quad((const int8_t*)p); }

// Scales per 32 or 64 inputs; `blocks`: how many such blocks of the group the weight has.
template <Kind kind, int MR, int NB, class Source>
QWENBOX_INLINE void tile_scaled_blocks(const Source& source, int blocks, const Row* rows, int c) {
  constexpr int parts = 4 / blocks_of(kind);  // sums of 32 inputs
  constexpr bool two = parts == 2 && Source::template two_sums<MR, NB>;
  const Starts<kind, MR> starts(rows);
  Floats acc[MR][NB];
  Ints first[MR][NB];  // of two parts
  if (kKeepAccumulators) each<MR, NB>([&](int m, int b) { acc[m][b] = load(rows[m].acc + c + 16 * b); });
#pragma GCC unroll kUnrolledSums
  for (int t = 0; t < 2; ++t)
    source.template half<MR, NB>(
        t, c, rows,
        [&](int i, int m, int b) {
          if (i % parts == 1 && !two) return first[m][b];
          return kind == Kind::q4_1 || has_zeros(kind) ? zeros() : spread_lane(starts.values[m] + 10 + i);
        },
        [&](int i, Ints(&sums)[MR][NB]) {
          const int j = i / parts;
          if (i % parts + 1 < parts) return each<MR, NB>([&](int m, int b) { first[m][b] = sums[m][b]; });
          if (j >= blocks) return;
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) {
            const Floats scale = source.scale(j, c + 16 * b), min = kind == Kind::q4_1 ? source.min(j, c + 16 * b) : scale;
            const Ints minus_zero = has_zeros(kind) ? source.minus_zero(j, c + 16 * b) : splat(0);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
              const Floats sa = splat(rows[m].member->scale);
              Floats sum = kKeepAccumulators ? acc[m][b] : load(rows[m].acc + c + 16 * b);
              Ints codes = two ? first[m][b] + sums[m][b] : sums[m][b];
              if (has_zeros(kind)) codes = dot2(codes, minus_zero, load_sum_pair(rows[m].member->sums + 24 + parts * j));
              sum = fma(to_floats(codes) * scale, sa, sum);
              if (kind == Kind::q4_1) sum = fma(splat(float(rows[m].member->sums[24 + j])) * min, sa, sum);
              if (kKeepAccumulators)
                acc[m][b] = sum;
              else
                store(rows[m].acc + c + 16 * b, sum);
            }
          }
          if (!kKeepAccumulators) __asm__ volatile("" ::: "memory");  // or the compiler keeps them, and spills
        });
  if (kKeepAccumulators) each<MR, NB>([&](int m, int b) { store(rows[m].acc + c + 16 * b, acc[m][b]); });
}

// acc = fma(value * scale, sa, acc) for 16 channels from c on.
QWENBOX_INLINE void accumulate(const Row& row, int c, Floats value, Floats scale) {
  store(row.acc + c, fma(value * scale, splat(row.member->scale), load(row.acc + c)));
}

// One scale for the group.
template <Kind kind, int MR, int NB, class Source>
QWENBOX_INLINE void tile_group(const Source& source, const Row* rows, int c) {
  constexpr bool two = Source::template two_sums<MR, NB>;
  Ints sums[2][MR][NB];
  each<MR, NB>([&](int m, int b) {
    sums[0][m][b] = has_zeros(kind) ? zeros() : splat(-layout_of(kind).zero_point * rows[m].member->sums[28]);
    if (two) sums[1][m][b] = zeros();
  });
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t)
    source.template half<MR, NB>(
        t, c, rows, [&](int j, int m, int b) { return sums[two ? j % 2 : 0][m][b]; },
        [&](int j, Ints(&s)[MR][NB]) { each<MR, NB>([&](int m, int b) { sums[two ? j % 2 : 0][m][b] = s[m][b]; }); });
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const Floats scale = source.scale(0, c + 16 * b);
    const Ints minus_zero = has_zeros(kind) ? source.minus_zero(0, c + 16 * b) : splat(0);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      Ints sum = two ? sums[0][m][b] + sums[1][m][b] : sums[0][m][b];
      if (has_zeros(kind)) sum = dot2(sum, minus_zero, load_sum_pair(rows[m].member->sums + 28));
      accumulate(rows[m], c + 16 * b, to_floats(sum), scale);
    }
  }
}

// Integer sub-scales. q4_k, q5_k: |sum| <= 31 * 127 * 32 and a sub-scale <= 63, so the scaled sums of two blocks (q4_k: of four) add up to
// less than 2^24, exactly in float32; the last addition rounds as the conversion of the whole integer would. Short sums are scaled and
// added up as integers.
template <Kind kind, int MR, int NB, class Source>
QWENBOX_INLINE void tile_sub_mins(const Source& source, const Row* rows, int c) {
  constexpr int parts = kind == Kind::q5_k ? 2 : 1;
  constexpr bool short_sums = kScaleShort<kind>;
  Floats total[parts][MR][NB];
  Ints whole[MR][NB];
  for (int i = 0; i < parts; ++i) each<MR, NB>([&](int m, int b) { total[i][m][b] = splat(0.0f); });
  each<MR, NB>([&](int m, int b) { whole[m][b] = zeros(); });
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t)
    source.template half<MR, NB>(
        t, c, rows, [&](int, int, int) { return zeros(); },
        [&](int j, Ints(&sums)[MR][NB]) {
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) {
            if constexpr (short_sums) {
              const Ints sub = source.sub(j, c + 16 * b);
#pragma GCC unroll 8
              for (int m = 0; m < MR; ++m) whole[m][b] = dot2(whole[m][b], sums[m][b], sub);
            } else {
              const Floats factor = source.factor(j, c + 16 * b);
#pragma GCC unroll 8
              for (int m = 0; m < MR; ++m) {
                Floats& sum = total[parts == 2 ? t : 0][m][b];
                sum = exact_fma(to_floats(sums[m][b]), factor, sum);
              }
            }
          }
        });
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const Floats scale = source.scale(0, c + 16 * b), min = source.min(0, c + 16 * b);
    const Ints mins[2] = {source.sub_mins(0, c + 16 * b), source.sub_mins(1, c + 16 * b)};
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      Ints sum = dot2(zeros(), mins[0], load_sum_pair(rows[m].member->sums + 24));
      sum = dot2(sum, mins[1], load_sum_pair(rows[m].member->sums + 26));
      const Floats scaled = short_sums ? to_floats(whole[m][b]) : parts == 2 ? total[0][m][b] + total[parts - 1][m][b] : total[0][m][b];
      accumulate(rows[m], c + 16 * b, scaled, scale);
      accumulate(rows[m], c + 16 * b, to_floats(sum), min);
    }
  }
}

// q6_k: with the zero point taken off, eight inputs sum to an int16: |sum| <= 32 * 127 * 8 = 32512. Short sums are less than that with it;
// it is taken off the total.
template <int MR, int NB, class Source>
QWENBOX_INLINE void tile_q6_k(const Source& source, const Row* rows, int c) {
  const Starts<Kind::q6_k, MR> starts(rows);
  Ints total[MR][NB];
  each<MR, NB>([&](int m, int b) {
    total[m][b] = zeros();
    if (!kScaleShort<Kind::q6_k>) return;
    for (int i = 0; i < 4; ++i)
      total[m][b] = dot2(total[m][b], source.sub_pairs(i, c + 16 * b), load_sum_pair(rows[m].member->sums + 16 + 2 * i));
    total[m][b] = splat(0) - shift_left<5>(total[m][b]);
  });
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t)
    source.template half<MR, NB>(
        t, c, rows, [&](int part, int m, int) { return spread_lane(starts.values[m] + part); },
        [&](int part, Ints(&sums)[MR][NB]) {
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) {
            const Ints sub = source.sub(part / 2, c + 16 * b);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) total[m][b] = dot2(total[m][b], sums[m][b], sub);
          }
        });
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const Floats scale = source.scale(0, c + 16 * b);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) accumulate(rows[m], c + 16 * b, to_floats(total[m][b]), scale);
  }
}

// MR rows over one group. Not inlined, or the caller's values crowd the registers.
template <Kind kind, int MR, int NB, class Source>
__attribute__((noinline)) void tile(const Source& source, int blocks, const Row* rows) {
  for (int c = 0; c < kPanel; c += 16 * NB) {
    if constexpr (has_sub_mins(kind))
      tile_sub_mins<kind, MR, NB>(source, rows, c);
    else if constexpr (kind == Kind::q6_k)
      tile_q6_k<MR, NB>(source, rows, c);
    else if constexpr (blocks_of(kind) > 1)
      tile_scaled_blocks<kind, MR, NB>(source, blocks, rows, c);
    else
      tile_group<kind, MR, NB>(source, rows, c);
  }
}

// Where sums are all that a tile over spread codes keeps, or also totals or accumulators.
constexpr bool keeps_sums_only(Kind kind) { return has_group_scale(kind) || (blocks_of(kind) > 1 && !kKeepAccumulators); }
constexpr int tile_rows(Kind kind, bool packed) { return packed ? kPackedRows : keeps_sums_only(kind) ? kSumRows : kTotalRows; }
template <Kind kind>
constexpr int tile_blocks(bool packed, int rows) {
  if (!packed) return keeps_sums_only(kind) ? kSumBlocks : kTotalBlocks;
  if (kShort<kind> != 0 && !kJoinNibbles<kind>) return rows == 1 ? kPackedBlocksBeside : 1;
  if (rows == 1) return kPackedBlocks;
  return rows <= kTwoSumsRows || has_group_scale(kind) ? kPackedBlocksMore : 1;
}

// Rows [0, rows) in tiles of nearly the same height.
template <Kind kind, bool packed, int MR = tile_rows(kind, packed), class Source>
QWENBOX_INLINE void tile_of(int count, const Source& source, int blocks, const Row* rows) {
  if constexpr (MR > 1) {
    if (count < MR) return tile_of<kind, packed, MR - 1>(count, source, blocks, rows);
  }
  tile<kind, MR, tile_blocks<kind>(packed, MR)>(source, blocks, rows);
}
// Over spread codes, the tiles fetch between them what is needed next, because all at once would wait for memory: activations of the next
// tile, weights of the next group where `ahead`, and to write it, line `line` of each row of the output, if there is one.
template <Kind kind, bool packed, class Source>
QWENBOX_INLINE void tiles(const Source& source, int blocks, const Row* rows, int count, bool ahead, int line) {
  constexpr Layout layout = layout_of(kind);
  constexpr int most = tile_rows(kind, packed), bytes = layout.group_bytes() + layout.scale_bytes;
  int left = (count + most - 1) / most;
  const int fetched = (bytes / left + 63) / 64 * 64;
  for (int i = 0; left > 0; --left, i += fetched) {
    const int height = (count + left - 1) / left;
    if constexpr (!packed) {
      for (int m = height; m < 2 * height && m < count; ++m)
        prefetch(rows[m].codes), prefetch(rows[m].codes + kCodesHalf), prefetch(rows[m].member);
      if (ahead)
        for (int at = i; at < i + fetched && at < bytes; at += 64) prefetch(source.ahead + at);
      if (line >= 0)
        for (int m = 0; m < height; ++m) prefetch_write(rows[m].out + 16 * line);
    }
    tile_of<kind, packed>(height, source, blocks, rows);
    rows += height, count -= height;
  }
}

inline void write_row(const float* acc, const float* bias, int channels, float* out) {
  for (int c = 0; c < channels; c += 16) {
    const int count = channels - c < 16 ? channels - c : 16;
    Floats y = load(acc + c);
    if (bias) y = y + load_first(bias + c, count);
    store_first(out + c, y, count);
  }
}

// Rows [chunk, chunk + rows) of one panel. first: its weights are not in the second cache yet.
template <Kind kind>
void chunk_of(const Weight& w, const Activations& a, int chunk, int rows, int panel, bool first, float* out, size_t out_stride,
              LinearScratch& scratch) {
  const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
  auto& prepared = *reinterpret_cast<Prepared<kind>*>(scratch.prepared);
  for (int r = 0; r < rows; ++r) {
    scratch.rows[r] = {a.codes + code_index(a.groups, size_t(chunk + r), 0), a.members + member_index(a.groups, size_t(chunk + r), 0),
                       scratch.acc[r], out + size_t(chunk + r) * out_stride + size_t(panel) * kPanel};
    for (int c = 0; c < kPanel; c += 16) store(scratch.acc[r] + c, splat(0.0f));
  }
  for (int g = 0; g < w.groups; ++g) {
    const int blocks = blocks_left(kind, w.k, g);
    if (rows <= kFewRows) {
      const Packed<kind> packed(base, g);
      tiles<kind, true>(packed, blocks, scratch.rows, rows, false, -1);
    } else {
      prepared.prepare(base, g);
      tiles<kind, false>(prepared, blocks, scratch.rows, rows, first, g - w.groups + kPanel / 16);
    }
    for (int r = 0; r < rows; ++r) scratch.rows[r].codes += 2 * kCodesHalf, scratch.rows[r].member += 16;
  }
}

template <Kind kind>
void linear_of(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
               float* out, size_t out_stride, LinearScratch& scratch) {
  const int chunks = (row_end - row_begin + kChunkRows - 1) / kChunkRows;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const int channel = panel * kPanel, channels = w.n - channel < kPanel ? w.n - channel : kPanel;
    for (int i = 0, chunk = row_begin; i < chunks; ++i) {
      const int rows = (row_end - chunk + chunks - i - 1) / (chunks - i);
      chunk_of<kind>(w, a, chunk, rows, panel, i == 0, out, out_stride, scratch);
      for (int r = 0; r < rows; ++r)
        write_row(scratch.acc[r], bias ? bias + channel : nullptr, channels, out + size_t(chunk + r) * out_stride + channel);
      chunk += rows;
    }
  }
}

void linear(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
            float* out, size_t out_stride, uint8_t* scratch) {
  auto& aligned = *reinterpret_cast<LinearScratch*>((uintptr_t(scratch) + 63) & ~uintptr_t(63));
  with_kind(w.kind, [&](auto kind) {  // dense kinds: linear_dense
    if constexpr (!is_dense(kind)) linear_of<kind>(w, a, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride, aligned);
  });
}

size_t linear_scratch(int) { return sizeof(LinearScratch) + 64; }

// --- dense weights -----------------------------------------------------------------------------------------------

template <Kind kind>
QWENBOX_INLINE Floats load_dense(const uint8_t* p) {
  if (kind == Kind::f32) return load((const float*)p);
  return kind == Kind::f16 ? load_f16((const uint16_t*)p) : load_bf16((const uint16_t*)p);
}

// So many rows keep their sums while a slice of a panel, of so many inputs, stays in the cache for all of them.
constexpr int kSliceRows = 48, kSlice = 256;
constexpr int kDenseAhead = 8192;  // bytes between a read and its prefetch

// Adds the products of k inputs to acc.
template <Kind kind, int MR, int NB>
void dense_tile(const uint8_t* base, int k, const float* x, size_t x_stride, float (*acc)[kPanel]) {
  constexpr int size = layout_of(kind).bits / 8;
  for (int c = 0; c < kPanel; c += 16 * NB) {
    const uint8_t* p = base + size * c;
    Floats sums[MR][NB];
    each<MR, NB>([&](int m, int b) { sums[m][b] = load(acc[m] + c + 16 * b); });
    for (int i = 0; i < k; ++i, p += size * kPanel) {
      for (int line = 0; line < 16 * NB * size; line += 64) prefetch(p + kDenseAhead + line);
      Floats w[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) w[b] = load_dense<kind>(p + 16 * size * b);
      each<MR, NB>([&](int m, int b) { sums[m][b] = fma(w[b], splat(x[m * x_stride + i]), sums[m][b]); });
    }
    each<MR, NB>([&](int m, int b) { store(acc[m] + c + 16 * b, sums[m][b]); });
  }
}

template <Kind kind>
void dense_rows(const uint8_t* base, int k, const float* x, size_t x_stride, int rows, float (*acc)[kPanel]) {
  int row = 0;
  for (; row + kDenseRows <= rows; row += kDenseRows)
    dense_tile<kind, kDenseRows, kDenseBlocks>(base, k, x + size_t(row) * x_stride, x_stride, acc + row);
  for (; row + 2 <= rows; row += 2)
    dense_tile < kind, 2, kDenseBlocks<2 ? 2 : kDenseBlocks>(base, k, x + size_t(row) * x_stride, x_stride, acc + row);
  if (row < rows) dense_tile<kind, 1, 4>(base, k, x + size_t(row) * x_stride, x_stride, acc + row);
}

template <Kind kind>
void dense_of(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
              const float* bias, float* out, size_t out_stride) {
  constexpr size_t line = size_t(kPanel) * layout_of(kind).bits / 8;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
    const int channel = panel * kPanel, channels = w.n - channel < kPanel ? w.n - channel : kPanel;
    for (int row = row_begin; row < row_end; row += kSliceRows) {
      alignas(64) float acc[kSliceRows][kPanel];
      const int rows = row_end - row < kSliceRows ? row_end - row : kSliceRows;
      __builtin_memset(acc, 0, size_t(rows) * sizeof acc[0]);
      const int slice = rows > kDenseRows ? kSlice : w.k;
      for (int i = 0; i < w.k; i += slice)
        dense_rows<kind>(base + line * i, w.k - i < slice ? w.k - i : slice, x + size_t(row) * x_stride + i, x_stride, rows, acc);
      for (int r = 0; r < rows; ++r)
        write_row(acc[r], bias ? bias + channel : nullptr, channels, out + size_t(row + r) * out_stride + channel);
    }
  }
}

void linear_dense(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
                  const float* bias, float* out, size_t out_stride) {
  with_kind(w.kind, [&](auto kind) {
    if constexpr (is_dense(kind)) dense_of<kind>(w, x, x_stride, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride);
  });
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
    store(sums4 + 16 * t, dot4<8>(splat(0), load_bytes(ones), load_ints(half)));
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
