// Products with quantised weights by AMX tiles: the bits of linear_impl.h (docs/numeric-contract.md, Quantised linear) by other
// instructions, for many rows. Sums of integers are exact however they are cut; what is scaled and added in float32 keeps its order.
//
// The codes of a panel are unpacked to tiles [16 quads of inputs][16 channels][4], zero point taken off. A *step* is what is scaled
// together: two *sets* of integer sums for the same rows and channels.
//   int4 int8 uint8        a step is two groups of 128 inputs, a set one of them
//   int4_64                a step is one group, a set half of it
//   q4_0 q4_1 q5_0 q8_0 int4_32
//                          a step is 64 inputs, a set a block of 32 with tiles of half the depth
//   q4_k q5_k q6_k         a step is one group; code times sub-scale is cut into two planes of bytes, sub * code = 2^shift * high + low,
//                          and a set is a plane: D = (sum high a << shift) + sum low a
// The sums of a step are scaled between the products of the next one. Ports of a 32 x 32 step over 2 x 128 inputs of one plane, in cycles:
// 256 tile products, 256 loads, 192 stores, 192 vector operations; K-quants, over 128 inputs: 256 and 320 vector operations; blocks of 32,
// over 64 inputs: 128 and 192.
#pragma once
#include <utility>

#include "amx.h"
#include "layout.h"

namespace qwenbox {
namespace {
namespace amx {

constexpr int kTileBytes = 1024;
constexpr int kPanels = 4;         // panels that share one pass over the activations, when there are many rows
constexpr int kStreamedRows = 64;  // up to so many rows a panel is unpacked a step ahead, and multiplied while it is in L1
constexpr int kChunkRows = 512;    // rows that share one unpacking

enum class Scheme { groups, blocks64, blocks32, planes };

constexpr Scheme scheme_of(Kind kind) {
  switch (kind) {
    case Kind::int4:
    case Kind::int8:
    case Kind::uint8:
      return Scheme::groups;
    case Kind::int4_64:
      return Scheme::blocks64;
    case Kind::q4_k:
    case Kind::q5_k:
    case Kind::q6_k:
      return Scheme::planes;
    default:
      return Scheme::blocks32;
  }
}
constexpr bool has_blocks(Kind kind) { return blocks_of(kind) > 1; }
constexpr int planes_of(Kind kind) { return scheme_of(kind) == Scheme::planes ? 2 : 1; }
constexpr bool has_mins(Kind kind) { return kind == Kind::q4_k || kind == Kind::q5_k; }
// sub * code = 2^shift * high + low. q4_k, q5_k: code times the upper and the lower three bits of the sub-scale, at most 7 * 31, so both
// unsigned. q6_k: the bytes of the 16-bit product, the upper one signed.
constexpr int shift_of(Kind kind) { return kind == Kind::q6_k ? 8 : 3; }
constexpr bool unsigned_set(Kind kind, int set) {
  return kind == Kind::uint8 || (scheme_of(kind) == Scheme::planes && (set == 1 || kind != Kind::q6_k));
}
// Groups unpacked together: few enough that their inputs for 32 rows stay in L1 while the channels pass, and the weights in L2.
constexpr int block_groups(Kind kind) { return scheme_of(kind) == Scheme::planes ? 2 : 4; }
constexpr int streamed_groups(Kind kind) { return scheme_of(kind) == Scheme::groups ? 2 : 1; }

// One group of one panel.
template <Kind kind>
struct alignas(64) Unpacked {
  uint8_t codes[planes_of(kind)][2][4][kTileBytes];  // [plane][64 inputs][16 channels]
  float scales[blocks_of(kind)][kPanel];
  float mins[kind == Kind::q4_1 ? 4 : 1][kPanel];
  int32_t sub_mins[2][kPanel];  // pairs of int16; the first ones of uint8: zeros of the other sign, which int4 has taken off
};

template <Kind kind>
struct alignas(64) Scratch {
  int32_t sums[2][2][4][256];  // [steps in turn][set][tile]
  Unpacked<kind> weights[kPanels * block_groups(kind)];
};

template <class F, int... i>
QWENBOX_INLINE void unrolled(std::integer_sequence<int, i...>, const F& f) {
  (f(std::integral_constant<int, i>()), ...);
}
template <int n, class F>
QWENBOX_INLINE void unrolled(const F& f) {
  unrolled(std::make_integer_sequence<int, n>(), f);
}

// --- weights to tiles --------------------------------------------------------------------------------------------

// Calls put(row, unsigned codes) for the 16 rows of the tile of inputs [64 t, 64 t + 64) and channels [16 b, 16 b + 16).
template <Kind kind, class Put>
QWENBOX_INLINE void spread_tile(const uint8_t* codes, int t, int b, const Put& put) {
  constexpr int bits = layout_of(kind).bits;
  unrolled<8>([&](auto r) {
    constexpr int row = decltype(r)::value;
    if constexpr (bits == 8) {
      const uint8_t* line = codes + 256 * (16 * t + row) + 64 * b;
      put(r, load_bytes(line));
      put(std::integral_constant<int, row + 8>(), load_bytes(line + 8 * 256));
    } else {
      const Bytes both = load_bytes(codes + 256 * (8 * t + row) + 64 * b);
      Bytes low = low_nibbles(both), high = high_nibbles(both);
      if constexpr (bits == 5) {
        const uint8_t* plane = codes + 4096 + 512 * t + 64 * b;
        low = or_bits<row, 0x10>(low, load_bytes(plane));
        high = or_bits<row, 0x10>(high, load_bytes(plane + 256));
      }
      if constexpr (bits == 6) {
        const uint8_t* plane = codes + 4096 + 1024 * t + 256 * (row / 4) + 64 * b;
        low = or_bits<2 * (row % 4), 0x30>(low, load_bytes(plane));
        high = or_bits<2 * (row % 4), 0x30>(high, load_bytes(plane + 512));
      }
      put(r, low);
      put(std::integral_constant<int, row + 8>(), high);
    }
  });
}

// 16 pairs of int8 as 16 pairs of int16; the first or the second of each pair, twice; 16 bytes as each four times.
QWENBOX_INLINE __m512i load_pairs(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
QWENBOX_INLINE __m512i first_twice(__m512i pairs) {
  return _mm512_shuffle_epi8(pairs, _mm512_set4_epi32(0x0D0C0D0C, 0x09080908, 0x05040504, 0x01000100));
}
QWENBOX_INLINE __m512i second_twice(__m512i pairs) {
  return _mm512_shuffle_epi8(pairs, _mm512_set4_epi32(0x0F0E0F0E, 0x0B0A0B0A, 0x07060706, 0x03020302));
}
QWENBOX_INLINE __m512i low_byte_four_times(__m512i v) {
  return _mm512_shuffle_epi8(v, _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0));
}

QWENBOX_INLINE void widen_halves(const uint8_t* p, float* out) {
  for (int c = 0; c < kPanel; c += 16) store(out + c, load_f16((const uint16_t*)p + c));
}

// Group g of a panel. False where a zero point of int4 is so large that code - zero needs more than a byte.
template <Kind kind>
bool unpack(const uint8_t* panel, int g, Unpacked<kind>& out) {
  constexpr Layout layout = layout_of(kind);
  const uint8_t *codes = panel + group_offset(layout, g), *sub = codes + layout.code_bytes(), *scales = panel + scale_offset(layout, g);
  __mmask16 wide = 0;
  for (int t = 0; t < 2; ++t)
    for (int b = 0; b < 4; ++b) {
      uint8_t* const tile = out.codes[0][t][b];
      if constexpr (has_mins(kind)) {
        const __m512i pairs = load_pairs(sub + 128 * t + 32 * b), seven = _mm512_set1_epi16(7);
        const __m512i both[2] = {first_twice(pairs), second_twice(pairs)};
        __m512i high[2], low[2];
        for (int i = 0; i < 2; ++i) high[i] = _mm512_srli_epi16(both[i], 3), low[i] = _mm512_and_si512(both[i], seven);
        uint8_t* const tile_low = out.codes[1][t][b];
        // A factor of at most 7 leaves each byte of a word below 256: one product multiplies both.
        spread_tile<kind>(codes, t, b, [&](auto r, Bytes q) {
          store(tile + 64 * r, Bytes{_mm512_mullo_epi16(q.v, high[r / 8])});
          store(tile_low + 64 * r, Bytes{_mm512_mullo_epi16(q.v, low[r / 8])});
        });
      } else if constexpr (kind == Kind::q6_k) {
        __m512i even[4], odd[4], zero[4];  // by block of 16 inputs; sub-scale in the even bytes, in the odd ones, times -32
        for (int i = 0; i < 4; ++i) {
          const __m512i pairs = load_pairs(sub + 128 * (2 * t + i / 2) + 32 * b), word = i % 2 ? second_twice(pairs) : first_twice(pairs);
          even[i] = _mm512_and_si512(word, _mm512_set1_epi16(255));
          odd[i] = _mm512_slli_epi16(word, 8);
          zero[i] = _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_slli_epi16(word, 5));
        }
        uint8_t* const tile_low = out.codes[1][t][b];
        spread_tile<kind>(codes, t, b, [&](auto r, Bytes q) {
          constexpr int block = decltype(r)::value / 4;
          const __m512i w0 = _mm512_add_epi16(_mm512_maddubs_epi16(q.v, even[block]), zero[block]);
          const __m512i w1 = _mm512_add_epi16(_mm512_maddubs_epi16(q.v, odd[block]), zero[block]);
          constexpr __mmask64 odd_bytes = 0xAAAAAAAAAAAAAAAAull;
          store(tile + 64 * r, Bytes{_mm512_mask_blend_epi8(odd_bytes, _mm512_srli_epi16(w0, 8), w1)});
          store(tile_low + 64 * r, Bytes{_mm512_mask_blend_epi8(odd_bytes, w0, _mm512_slli_epi16(w1, 8))});
        });
      } else {
        __m512i zeros[2];  // of the upper and the lower half of the tile
        zeros[0] = zeros[1] = _mm512_set1_epi8(char(-layout.zero_point));
        if constexpr (kind == Kind::int4) {
          const __m512i minus_z = load_i16((const int16_t*)(scales + 128) + 16 * b).v;
          wide = __mmask16(wide | _mm512_cmplt_epi32_mask(minus_z, _mm512_set1_epi32(-128)));
          zeros[0] = zeros[1] = low_byte_four_times(minus_z);
        }
        if constexpr (has_blocks(kind) && has_zeros(kind)) {
          const __m512i pairs = load_pairs(sub + 128 * (blocks_of(kind) == 4 ? t : 0) + 32 * b);
          const __m512i both[2] = {low_byte_four_times(pairs), low_byte_four_times(_mm512_srli_epi32(pairs, 16))};
          for (int i = 0; i < 2; ++i) zeros[i] = both[blocks_of(kind) == 4 ? i : t];
        }
        spread_tile<kind>(codes, t, b, [&](auto r, Bytes q) { store(tile + 64 * r, Bytes{_mm512_add_epi8(q.v, zeros[r / 8])}); });
      }
    }
  for (int j = 0; j < blocks_of(kind); ++j) widen_halves(scales + 128 * j, out.scales[j]);
  if constexpr (kind == Kind::uint8)
    for (int c = 0; c < kPanel; c += 16) store(out.sub_mins[0] + c, load_i16((const int16_t*)(scales + 128) + c));
  if constexpr (kind == Kind::q4_1)
    for (int j = 0; j < 4; ++j) widen_halves(scales + 512 + 128 * j, out.mins[j]);
  if constexpr (has_mins(kind)) {
    widen_halves(scales + 128, out.mins[0]);
    for (int c = 0; c < kPanel; c += 16) store(out.mins[0] + c, load(out.mins[0] + c) * splat(-1.0f));
    for (int i = 0; i < 8; ++i) store(out.sub_mins[0] + 16 * i, Ints{load_pairs(sub + 256 + 32 * i)});
  }
  return wide == 0;
}

// --- one step ----------------------------------------------------------------------------------------------------

// Sums of a step that wait to be scaled: MB blocks of 16 rows by NB of 16 channels, four tiles.
template <Kind kind>
struct Pending {
  const int32_t (*sums)[4][256];  // [set]
  float* acc;                     // [tile][16][16]
  const Unpacked<kind>* weights;  // of the (first) group
  int channel;                    // first, in the panel
  int block;                      // the first of two, where there are such
  int sets;                       // 1 where the inputs end in the middle of a step
  const RowGroup* members;        // of the first row and group
  size_t next_rows;               // members between blocks of rows
  int rows;                       // that matter
};

// The step's scales of 16 NB channels, in registers.
template <Kind kind, int NB>
struct Factors {
  __m512 scales[2][NB], mins[2][NB];
  __m512i sub_mins[2][NB];

  QWENBOX_INLINE explicit Factors(const Pending<kind>& p) {
    constexpr Scheme scheme = scheme_of(kind);
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) {
      const int c = p.channel + 16 * n;
#pragma GCC unroll 2
      for (int set = 0; set < 2; ++set) {
        const Unpacked<kind>& group = p.weights[scheme == Scheme::groups && set < p.sets ? set : 0];
        if (scheme == Scheme::groups) scales[set][n] = load(group.scales[0] + c).v;
        if (kind == Kind::uint8) sub_mins[set][n] = load_ints(group.sub_mins[0] + c).v;
        if (has_blocks(kind)) scales[set][n] = load(p.weights->scales[p.block + set] + c).v;
        if (kind == Kind::q4_1) mins[set][n] = load(p.weights->mins[p.block + set] + c).v;
        if (has_mins(kind)) sub_mins[set][n] = load_ints(p.weights->sub_mins[set] + c).v;
      }
      if (scheme == Scheme::planes) scales[0][n] = load(p.weights->scales[0] + c).v;
      if (has_mins(kind)) mins[0][n] = load(p.weights->mins[0] + c).v;
    }
  }
};

QWENBOX_INLINE __m512 scaled(__m512i sum, __m512 scale, __m512 row_scale, __m512 acc) {
  return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), row_scale, acc);
}
QWENBOX_INLINE __m512i sum_pair(const int16_t* p) { return load_quad((const int8_t*)p).v; }

// Row r of the step, of 16 MB: its sums go to its accumulators.
template <Kind kind, int NB>
QWENBOX_INLINE void finish_row(const Pending<kind>& p, const Factors<kind, NB>& f, int r) {
  constexpr Scheme scheme = scheme_of(kind);
  const RowGroup& member = p.members[size_t(r / 16) * p.next_rows + size_t(r % 16)];
  const __m512 row_scale = _mm512_set1_ps(member.scale);
#pragma GCC unroll 4
  for (int n = 0; n < NB; ++n) {
    const int tile = r / 16 * NB + n, at = r % 16 * 16;
    float* const acc = p.acc + 256 * tile + at;
    __m512i first = _mm512_load_si512(p.sums[0][tile] + at), second = _mm512_load_si512(p.sums[1][tile] + at);
    __m512 y = _mm512_load_ps(acc);
    if constexpr (scheme == Scheme::groups) {
      if constexpr (kind == Kind::uint8) {
        first = _mm512_dpwssd_epi32(first, f.sub_mins[0][n], sum_pair(member.sums + 28));
        second = _mm512_dpwssd_epi32(second, f.sub_mins[1][n], sum_pair((&member)[p.sets == 2 ? 16 : 0].sums + 28));
      }
      y = scaled(first, f.scales[0][n], row_scale, y);
      if (p.sets == 2) y = scaled(second, f.scales[1][n], _mm512_set1_ps((&member)[16].scale), y);
    } else if constexpr (has_blocks(kind)) {
      const int16_t* sums = member.sums + 24 + p.block;
      y = scaled(first, f.scales[0][n], row_scale, y);
      if (kind == Kind::q4_1) y = scaled(_mm512_set1_epi32(sums[0]), f.mins[0][n], row_scale, y);
      if (p.sets == 2) {
        y = scaled(second, f.scales[1][n], row_scale, y);
        if (kind == Kind::q4_1) y = scaled(_mm512_set1_epi32(sums[1]), f.mins[1][n], row_scale, y);
      }
    } else {
      y = scaled(_mm512_add_epi32(_mm512_slli_epi32(first, shift_of(kind)), second), f.scales[0][n], row_scale, y);
      if constexpr (has_mins(kind)) {
        const __m512i half = _mm512_dpwssd_epi32(_mm512_setzero_si512(), f.sub_mins[0][n], sum_pair(member.sums + 24));
        y = scaled(_mm512_dpwssd_epi32(half, f.sub_mins[1][n], sum_pair(member.sums + 26)), f.mins[0][n], row_scale, y);
      }
    }
    _mm512_store_ps(acc, y);
  }
}

template <Kind kind, int set, int sums, int a, int b>
QWENBOX_INLINE void tile_dot() {
  if constexpr (unsigned_set(kind, set))
    tile_dot_unsigned<sums, a, b>();
  else
    tile_dot_signed<sums, a, b>();
}

// Products of one set, two blocks of rows by two of channels, or one by four; piece(i) runs after product i. Zeros, loads and products in
// the order that ceiling_amx.cpp measures.
template <Kind kind, int set, int MB, class Piece>
QWENBOX_INLINE void multiply(const int8_t* a, size_t next_rows, const uint8_t* b, int32_t (*sums)[256], const Piece& piece) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  unrolled<has_blocks(kind) ? 1 : 2>([&](auto t) {
    const int8_t* const x = a + kTileBytes * t;
    const uint8_t* const w = b + 4 * kTileBytes * t;
    if constexpr (MB == 2) {
      tile_load<4>(x, 64);
      tile_load<6>(w, 64);
      tile_dot<kind, set, 0, 4, 6>();
      piece(4 * t);
      tile_load<5>(x + next_rows, 64);
      tile_dot<kind, set, 2, 5, 6>();
      piece(4 * t + 1);
      tile_load<7>(w + kTileBytes, 64);
      tile_dot<kind, set, 1, 4, 7>();
      piece(4 * t + 2);
      tile_dot<kind, set, 3, 5, 7>();
      piece(4 * t + 3);
    } else {
      tile_load<4>(x, 64);
      unrolled<4>([&](auto n) {
        constexpr int channels = decltype(n)::value, weights = 6 + channels % 2;
        tile_load<weights>(w + kTileBytes * channels, 64);
        tile_dot<kind, set, channels, 4, weights>();
        piece(4 * t + channels);
      });
    }
  });
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  tile_store<2>(sums[2], 64);
  tile_store<3>(sums[3], 64);
}

// Lines of coming weights, fetched a few at a time while tiles are multiplied: `lines` of each of `panels`, with `gap` bytes between.
struct Ahead {
  const uint8_t* next = nullptr;  // where the lines of a panel end, at first those of one that is not there
  size_t gap = 0;
  int lines = 0, panels = 0, left = 0, each = 0;

  QWENBOX_INLINE void fetch() {
    for (int i = 0; i < each; ++i) {
      if (left == 0) {
        if (panels == 0) return;
        --panels, left = lines, next += gap;
      }
      prefetch(next);
      --left, next += 64;
    }
  }
};

// Does the products of the step that `next` describes, from the activations of its first rows, and meanwhile scales the sums of `before`.
// Not inlined: its vectors need all registers.
template <Kind kind, int MB>
__attribute__((noinline)) void run_step(const Pending<kind>& next, const Pending<kind>& before, const int8_t* a, size_t next_rows,
                                        int32_t (*sums)[4][256], Ahead& ahead) {
  constexpr Scheme scheme = scheme_of(kind);
  constexpr int NB = 4 / MB, products = has_blocks(kind) ? 4 : 8, rows = 16 * MB / (2 * products);  // of a set; of a piece
  const Factors<kind, NB> factors(before);
  const auto piece = [&](int i) __attribute__((always_inline)) {
    ahead.fetch();
#pragma GCC unroll 4
    for (int r = i * rows; r < (i + 1) * rows; ++r)
      if (r < before.rows) finish_row<kind, NB>(before, factors, r);
  };
  const auto later = [&](int i) __attribute__((always_inline)) { piece(products + i); };
  const auto codes = [&](int group, int plane) { return next.weights[group].codes[plane][0][next.channel / 16]; };
  if constexpr (scheme == Scheme::groups) {
    multiply<kind, 0, MB>(a, next_rows, codes(0, 0), sums[0], piece);
    if (next.sets == 2)
      multiply<kind, 1, MB>(a + 2 * kTileBytes, next_rows, codes(1, 0), sums[1], later);
    else
      for (int i = 0; i < products; ++i) later(i);
  } else if constexpr (scheme == Scheme::blocks64) {
    multiply<kind, 0, MB>(a, next_rows, codes(0, 0), sums[0], piece);
    multiply<kind, 1, MB>(a + kTileBytes, next_rows, codes(0, 0) + 4 * kTileBytes, sums[1], later);
  } else if constexpr (scheme == Scheme::blocks32) {
    const int t = next.block / 2;
    multiply<kind, 0, MB>(a + kTileBytes * t, next_rows, codes(0, 0) + 4 * kTileBytes * t, sums[0], piece);
    multiply<kind, 1, MB>(a + kTileBytes * t + 32, next_rows, codes(0, 0) + 4 * kTileBytes * t + kTileBytes / 2, sums[1], later);
  } else {
    multiply<kind, 0, MB>(a, next_rows, codes(0, 0), sums[0], piece);
    multiply<kind, 1, MB>(a, next_rows, codes(0, 1), sums[1], later);
  }
}

template <Kind kind, int MB>
void finish(const Pending<kind>& p) {
  const Factors<kind, 4 / MB> factors(p);
  for (int r = 0; r < p.rows; ++r) finish_row<kind, 4 / MB>(p, factors, r);
}

// --- panels ------------------------------------------------------------------------------------------------------

constexpr TileConfig make_config(bool half) {
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.rows[i] = 16, config.row_bytes[i] = 64;
  if (half) config.row_bytes[4] = config.row_bytes[5] = 32, config.rows[6] = config.rows[7] = 8;
  return config;
}

// Blocks of 16 rows [row_block, row_block + row_blocks) times some panels.
template <Kind kind>
class Product {
 public:
  Product(const Weight& w, const Activations& a, int row_block, int row_blocks, int rows_end, Scratch<kind>& scratch, float* acc)
      : w_(w), a_(a), row_block_(row_block), row_blocks_(row_blocks), rows_end_(rows_end), scratch_(scratch), acc_(acc) {}

  // False where the weights cannot be unpacked to bytes; nothing is then of use.
  bool run(int panel, int panels, bool streamed) {
    panel_ = panel, panels_ = panels;
    pending_.weights = scratch_.weights;
    none_pending();
    std::memset(acc_, 0, size_t(row_blocks_ + 1) / 2 * size_t(panels) * kPairFloats * sizeof(float));
    const int groups = streamed ? streamed_groups(kind) : block_groups(kind);
    // A streamed block is unpacked behind the products of the one before it, which the processor goes on with meanwhile.
    const int buffers = streamed ? 2 : 1;
    if (!unpack_block(0, groups, 0)) return false;
    for (int g = 0, buffer = 0; g < w_.groups; g += groups) {
      const int coming = g + groups;
      ahead_ = fetch_from(streamed ? coming + groups : coming, groups);
      multiply_block(g, coming < w_.groups ? groups : w_.groups - g, buffer * groups);
      if (buffers == 1) flush();
      buffer = (buffer + 1) % buffers;
      if (coming < w_.groups && !unpack_block(coming, groups, buffer * groups)) return false;
      flush();
    }
    return true;
  }

  void write(int row_begin, int row_end, const float* bias, float* out, size_t out_stride) const {
    for (int row = row_begin; row < row_end; ++row) {
      const int block = row / 16 - row_block_;
      const bool pair = block / 2 * 2 + 1 < row_blocks_;
      for (int p = 0; p < panels_; ++p)
        for (int b = 0; b < 4; ++b) {
          const int channel = (panel_ + p) * kPanel + 16 * b, count = w_.n - channel < 16 ? w_.n - channel : 16;
          if (count <= 0) break;
          const int tile = pair ? b / 2 * 4 + block % 2 * 2 + b % 2 : b;
          Floats y = load(accumulators(block / 2, p) + 256 * tile + row % 16 * 16);
          if (bias) y = y + load_first(bias + channel, count);
          store_first(out + size_t(row) * out_stride + channel, y, count);
        }
    }
  }

 private:
  static constexpr size_t kPairFloats = 2 * 4 * 256;  // of 32 rows by one panel

  float* accumulators(int pair, int p) const { return acc_ + size_t(pair * panels_ + p) * kPairFloats; }

  Unpacked<kind>* weights(int first, int p) const { return scratch_.weights + p * block_groups(kind) + first; }

  bool unpack_block(int g, int groups, int first) {
    bool fits = true;
    for (int p = 0; p < panels_; ++p)
      for (int i = 0; i < groups && g + i < w_.groups; ++i) fits &= unpack<kind>(panel_data(p), g + i, weights(first, p)[i]);
    return fits;
  }

  const uint8_t* panel_data(int p) const { return w_.data + size_t(panel_ + p) * w_.panel_bytes; }

  // The codes of groups [g, g + groups) of all panels, in portions for the products of one block; behind the last group the next panels.
  Ahead fetch_from(int g, int groups) const {
    constexpr Layout layout = layout_of(kind);
    constexpr int pieces = scheme_of(kind) == Scheme::groups || scheme_of(kind) == Scheme::blocks64 ? 8 : 16;  // of a group, in run_step
    const bool over = g >= w_.groups;
    Ahead ahead;
    ahead.lines = (layout.group_bytes() + layout.scale_bytes / layout.unit_groups) / 64 * groups;
    ahead.panels = panels_;
    ahead.gap = w_.panel_bytes - size_t(ahead.lines) * 64;
    ahead.next = panel_data(over ? panels_ : 0) + group_offset(layout, over ? g - w_.groups : g) - ahead.gap;
    ahead.each = (ahead.lines + pieces * groups * row_blocks_ - 1) / (pieces * groups * row_blocks_);
    return ahead;
  }

  void multiply_block(int g, int groups, int first) {
    int block = 0;
    for (; block + 2 <= row_blocks_; block += 2)
      for (int p = 0; p < panels_; ++p)
        for (int half = 0; half < 2; ++half)
          steps<2>(g, groups, weights(first, p), block, 32 * half, accumulators(block / 2, p) + 1024 * half);
    if (block < row_blocks_) {
      flush();
      for (int p = 0; p < panels_; ++p) steps<1>(g, groups, weights(first, p), block, 0, accumulators(block / 2, p));
    }
  }

  template <int MB>
  void steps(int g, int groups, const Unpacked<kind>* weights, int block, int channel, float* acc) {
    Pending<kind> next;
    next.acc = acc;
    next.channel = channel;
    next.next_rows = 16 * size_t(a_.groups);
    const int left = rows_end_ - 16 * (row_block_ + block);
    next.rows = left < 16 * MB ? left : 16 * MB;
    const size_t row = 16 * size_t(row_block_ + block);
    constexpr int step_groups = scheme_of(kind) == Scheme::groups ? 2 : 1;
    for (int i = 0; i < groups; i += step_groups) {
      next.weights = weights + i;
      next.members = a_.members + member_index(a_.groups, row, g + i);
      const int8_t* const codes = a_.codes + code_index(a_.groups, row, g + i);
      if constexpr (has_blocks(kind)) {
        const int blocks = blocks_left(kind, w_.k, g + i);
        for (next.block = 0; next.block < blocks; next.block += 2) step<MB>(next, blocks - next.block < 2 ? 1 : 2, codes);
      } else {
        next.block = 0;
        step<MB>(next, i + step_groups <= groups ? 2 : 1, codes);
      }
    }
  }

  template <int MB>
  void step(Pending<kind>& next, int sets, const int8_t* codes) {
    const size_t next_rows = size_t(a_.groups) * 2 * kTileBytes;
    int32_t (*const sums)[4][256] = scratch_.sums[turn_];
    next.sets = sets;
    next.sums = sums;
    run_step<kind, MB>(next, pending_, codes, next_rows, sums, ahead_);
    pending_ = next;
    pending_blocks_ = MB;
    turn_ ^= 1;
  }

  void flush() {
    if (pending_blocks_ == 2) finish<kind, 2>(pending_);
    if (pending_blocks_ == 1) finish<kind, 1>(pending_);
    none_pending();
  }

  void none_pending() {
    pending_blocks_ = 0;
    pending_.rows = 0;
  }

  const Weight& w_;
  const Activations& a_;
  const int row_block_, row_blocks_, rows_end_;
  Scratch<kind>& scratch_;
  float* const acc_;  // [pair of row blocks][panel][4 tiles of 2 x 2, or of 1 x 4][2][16][16]
  int panel_ = 0, panels_ = 0, turn_ = 0, pending_blocks_ = 0;
  Pending<kind> pending_{};
  Ahead ahead_;
};

template <Kind kind>
void linear_of(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
               float* out, size_t out_stride, uint8_t* memory) {
  static constexpr TileConfig config = make_config(scheme_of(kind) == Scheme::blocks32);
  ensure_config(config);
  auto& scratch = *reinterpret_cast<Scratch<kind>*>((uintptr_t(memory) + 63) & ~uintptr_t(63));
  float* const acc = reinterpret_cast<float*>(&scratch + 1);
  const bool streamed = row_end - row_begin <= kStreamedRows;
  const int together = streamed ? 1 : kPanels;
  for (int panel = panel_begin; panel < panel_end; panel += together) {
    const int panels = panel_end - panel < together ? panel_end - panel : together;
    for (int row = row_begin; row < row_end;) {
      const int block = row / 16, left = (row_end + 15) / 16 - block, blocks = left < kChunkRows / 16 ? left : kChunkRows / 16;
      const int chunk_end = (block + blocks) * 16 < row_end ? (block + blocks) * 16 : row_end;
      Product<kind> product(w, a, block, blocks, chunk_end, scratch, acc);
      if (product.run(panel, panels, streamed))
        product.write(row, chunk_end, bias, out, out_stride);
      else
        kernels_avx512vnni().linear(w, a, row, chunk_end, panel, panel + panels, bias, out, out_stride, memory);
      row = chunk_end;
    }
  }
}

void linear(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
            float* out, size_t out_stride, uint8_t* scratch) {
  if (row_end - row_begin < tile_crossovers[int(w.kind)])
    return kernels_avx512vnni().linear(w, a, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride, scratch);
  with_kind(w.kind, [&](auto kind) {  // dense kinds: linear_dense
    if constexpr (!is_dense(kind)) linear_of<kind>(w, a, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride, scratch);
  });
}

size_t linear_scratch(int rows) {
  constexpr size_t groups = sizeof(Scratch<Kind::int4>), blocks32 = sizeof(Scratch<Kind::q4_1>), planes = sizeof(Scratch<Kind::q5_k>);
  constexpr size_t larger = groups > blocks32 ? groups : blocks32, fixed = larger > planes ? larger : planes;
  const size_t touched = size_t(rows + 30) / 16, blocks = touched < kChunkRows / 16 ? touched : kChunkRows / 16;
  const size_t acc = (blocks + 1) / 2 * 32 * kPanel * sizeof(float) * (rows > kStreamedRows ? kPanels : 1);
  const size_t tiles = fixed + acc + 64, without = kernels_avx512vnni().linear_scratch(rows);
  return tiles > without ? tiles : without;
}

}  // namespace amx
}  // namespace
}  // namespace qwenbox
