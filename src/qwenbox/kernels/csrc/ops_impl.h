// Everything of a kernel table that is not a matrix product, once a variant, over the vocabulary of vec_*.h. Formulas and the order of
// every sum: docs/numeric-contract.md.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels.h"

namespace qwenbox {
namespace {

// --- functions ---------------------------------------------------------------------------------------------------

QWENBOX_INLINE Floats exponential(Floats x) {
  const Floats lowest = splat(-87.0f);
  Floats z = min(splat(88.0f), max(lowest, x));  // these keep NaN
  Floats n = rint(z * splat(1.44269502f));
  Floats f = fma(n, splat(-0.693359375f), z);
  f = fma(n, splat(2.12194440e-4f), f);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, f, splat(1.3981999507e-3f));
  p = fma(p, f, splat(8.3334519073e-3f));
  p = fma(p, f, splat(4.1665795894e-2f));
  p = fma(p, f, splat(1.6666665459e-1f));
  p = fma(p, f, splat(5.0000001201e-1f));
  Floats y = fma(p, f * f, f) + splat(1.0f);
  Floats power = from_bits(shift_left<23>(to_ints(n) + splat(int32_t(127))));
  return select_less(x, lowest, splat(0.0f), y * power);
}

inline float exponential(float x) {
  float y;
  store_first(&y, exponential(splat(x)), 1);
  return y;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Calls f(offset, lanes) over [0, n) in steps of 16; the last step may have fewer lanes.
template <class F>
QWENBOX_INLINE void each16(size_t n, const F& f) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, std::integral_constant<int, 16>());
  if (i < n) f(i, int(n - i));
}
QWENBOX_INLINE Floats load_lanes(const float* p, std::integral_constant<int, 16>) { return load(p); }
QWENBOX_INLINE Floats load_lanes(const float* p, int n) { return load_first(p, n); }
QWENBOX_INLINE void store_lanes(float* p, Floats v, std::integral_constant<int, 16>) { store(p, v); }
QWENBOX_INLINE void store_lanes(float* p, Floats v, int n) { store_first(p, v, n); }

inline float largest(const float* x, int n) {
  const Floats bottom = splat(-INFINITY);
  Floats m = bottom;
  each16(size_t(n), [&](size_t i, auto lanes) { m = max(keep_first(load_lanes(x + i, lanes), lanes, bottom), m); });
  return reduce_max(m);
}

// --- rows --------------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* w, int n, float eps, float* out) {
  Floats squares = splat(0.0f);
  each16(size_t(n), [&](size_t i, auto lanes) {
    Floats v = load_lanes(x + i, lanes);
    squares = fma(v, v, squares);
  });
  const Floats r = splat(1.0f / std::sqrt(reduce_add(squares) / float(n) + eps));
  each16(size_t(n), [&](size_t i, auto lanes) { store_lanes(out + i, (load_lanes(x + i, lanes) * r) * load_lanes(w + i, lanes), lanes); });
}

void rope(const float* x, const float* cos, const float* sin, int heads, int head_dim, float* out) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim, out += head_dim)
    each16(size_t(half), [&](size_t i, auto lanes) {
      Floats a = load_lanes(x + i, lanes), b = load_lanes(x + half + i, lanes);
      Floats c = load_lanes(cos + i, lanes), s = load_lanes(sin + i, lanes);
      store_lanes(out + i, fma(a, c, splat(-1.0f) * (b * s)), lanes);
      store_lanes(out + half + i, fma(b, c, a * s), lanes);
    });
}

void silu_mul(const float* gate, const float* up, size_t n, float* out) {
  each16(n, [&](size_t i, auto lanes) {
    Floats g = load_lanes(gate + i, lanes);
    Floats s = g / (splat(1.0f) + exponential(splat(-1.0f) * g));
    store_lanes(out + i, s * load_lanes(up + i, lanes), lanes);
  });
}

void add(const float* a, const float* b, size_t n, float* out) {
  each16(n, [&](size_t i, auto lanes) { store_lanes(out + i, load_lanes(a + i, lanes) + load_lanes(b + i, lanes), lanes); });
}

void axpy(float a, const float* x, size_t n, float* out) {
  const Floats factor = splat(a);
  each16(n, [&](size_t i, auto lanes) { store_lanes(out + i, fma(factor, load_lanes(x + i, lanes), load_lanes(out + i, lanes)), lanes); });
}

void fused(const float* a, const float* b, const float* c, size_t n, float* out) {
  each16(n, [&](size_t i, auto lanes) {
    store_lanes(out + i, fma(load_lanes(a + i, lanes), load_lanes(b + i, lanes), load_lanes(c + i, lanes)), lanes);
  });
}

void softmax(const float* x, int n, float* out) {
  const Floats m = splat(largest(x, n));
  Floats sum = splat(0.0f);
  each16(size_t(n), [&](size_t i, auto lanes) {
    Floats e = exponential(load_lanes(x + i, lanes) - m);
    store_lanes(out + i, e, lanes);
    sum = sum + keep_first(e, lanes, splat(0.0f));
  });
  const Floats total = splat(reduce_add(sum));
  each16(size_t(n), [&](size_t i, auto lanes) { store_lanes(out + i, load_lanes(out + i, lanes) / total, lanes); });
}

float exp_sum(const float* logits, int n, float* out_or_null, double* sum) {
  const float m = largest(logits, n);
  const Floats top = splat(m);
  double lane[16] = {};
  each16(size_t(n), [&](size_t i, auto lanes) {
    float e[16];
    store(e, keep_first(exponential(load_lanes(logits + i, lanes) - top), lanes, splat(0.0f)));
    if (out_or_null) store_lanes(out_or_null + i, load(e), lanes);
    for (int j = 0; j < 16; ++j) lane[j] += double(e[j]);
  });
  for (int half = 8; half; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  *sum = lane[0];
  return m;
}

// --- attention ---------------------------------------------------------------------------------------------------

void store_kv(const float* k, const float* v, int head_dim, int slot, uint16_t* keys, uint16_t* values) {
  uint16_t* key = keys + size_t(slot / 16) * head_dim * 16 + size_t(slot % 16) * 2;  // of pair 0; pairs lie 32 apart
  uint16_t* value = values + size_t(slot / 2) * 32 + slot % 2;                       // of dimension 0; 16 dimensions lie 512 apart
  for (int i = 0; i < head_dim; i += 16, key += 8 * 32, value += 512) {
    uint16_t rounded[16];
    store_bf16(rounded, load(k + i));
    for (int j = 0; j < 8; ++j) key[j * 32] = rounded[2 * j], key[j * 32 + 1] = rounded[2 * j + 1];
    store_bf16(rounded, load(v + i));
    for (int j = 0; j < 16; ++j) value[2 * j] = rounded[j];
  }
}

constexpr int kNearKeys = 512;           // between a read of keys and its prefetch into L1: 1 KiB
constexpr int kQueries = 2 * kTileRows;  // query vectors that a tile keeps in registers

// Blocks of 16 tokens or dimensions beside `queries` query vectors: enough sums under way at a time, few enough for the registers.
constexpr int tile_width(int queries) { return queries > kTileRows ? kTileRows / 2 : kTileRows; }

// f(u, t) for all u < Q, t < T, unrolled, so that arrays of vectors live in registers.
template <int Q, int T, class F>
QWENBOX_INLINE void each_pair(const F& f) {
#pragma GCC unroll 16
  for (int u = 0; u < Q; ++u)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) f(u, t);
}

// T blocks of keys of 16 tokens as they are stored. The values of the same tokens are on their way while they are read: the processor does
// not foresee pages.
template <int T>
struct StoredKeys {
  const uint16_t* block[T];
  ptrdiff_t values;

  StoredKeys(const uint16_t* const* blocks, ptrdiff_t to_values) : values(to_values) {
    each_pair<1, T>([&](int, int t) { block[t] = blocks[t]; });
  }
  QWENBOX_INLINE void load_pairs(int i, Floats (&even)[T], Floats (&odd)[T]) const {
    each_pair<1, T>([&](int, int t) {
      load_bf16_pairs(block[t] + i * 16, even[t], odd[t]);
      prefetch(block[t] + i * 16 + kNearKeys);
      prefetch_far(block[t] + values + i * 16);
    });
  }
};

// The same after widen_keys(), [head_dim][T][16 tokens]; meanwhile the lines at `ahead`, `step` elements apart, go to L2.
template <int T>
struct WideKeys {
  const float* keys;
  const uint16_t* ahead;
  int step;

  QWENBOX_INLINE void load_pairs(int i, Floats (&even)[T], Floats (&odd)[T]) const {
    each_pair<1, T>([&](int, int t) {
      even[t] = load(keys + (i * T + t) * 16);
      odd[t] = load(keys + ((i + 1) * T + t) * 16);
    });
    prefetch_far(ahead + i / 2 * step);
  }
};

// Scores of Q queries, [head_dim][Q], against T blocks of 16 tokens; lanes are tokens. scores[query][kBlockTokens].
template <int Q, int T, class Keys>
void score_tile(const float* queries, const Keys keys, int head_dim, float scale, float* scores) {
  Floats acc[Q][T];
  each_pair<Q, T>([&](int u, int t) { acc[u][t] = splat(0.0f); });
  for (int i = 0; i < head_dim; i += 2, queries += 2 * Q) {
    Floats even[T], odd[T];
    keys.load_pairs(i, even, odd);
#pragma GCC unroll 16
    for (int u = 0; u < Q; ++u) {
      const Floats q = splat(queries[u]);
      each_pair<1, T>([&](int, int t) { acc[u][t] = fma(q, even[t], acc[u][t]); });
    }
#pragma GCC unroll 16
    for (int u = 0; u < Q; ++u) {
      const Floats q = splat(queries[Q + u]);
      each_pair<1, T>([&](int, int t) { acc[u][t] = fma(q, odd[t], acc[u][t]); });
    }
  }
  each_pair<Q, T>([&](int u, int t) { store(scores + u * kBlockTokens + t * 16, acc[u][t] * splat(scale)); });
}

template <int T>
void widen_keys(const uint16_t* const* blocks, int head_dim, float* out) {
  for (int i = 0; i < head_dim; i += 2)
    each_pair<1, T>([&](int, int t) {
      Floats even, odd;
      load_bf16_pairs(blocks[t] + i * 16, even, odd);
      prefetch(blocks[t] + i * 16 + kNearKeys);
      store(out + (i * T + t) * 16, even);
      store(out + ((i + 1) * T + t) * 16, odd);
    });
}

// out[query][head_dim] += weights x values over the tokens [begin, end) of a block, for D blocks of 16 dimensions; lanes are dimensions.
// Meanwhile what lies at the same places of the next page goes to L1, and of the pages `ahead`, the keys of the next block, to L2.
template <int Q, int D>
void value_tile(const float* weights, const uint16_t* const* pages, const uint16_t* const* ahead, int offset, int begin, int end,
                int head_dim, float* out) {
  Floats acc[Q][D];
  each_pair<Q, D>([&](int u, int j) { acc[u][j] = load(out + u * head_dim + j * 16); });
  int t = begin;
  const auto add = [&](const Floats(&v)[D]) {
#pragma GCC unroll 16
    for (int u = 0; u < Q; ++u) {
      const Floats weight = splat(weights[u * kBlockTokens + t]);
      each_pair<1, D>([&](int, int j) { acc[u][j] = fma(weight, v[j], acc[u][j]); });
    }
    ++t;
  };
  while (t < end) {
    const int page = t / kPageTokens, stop = (page + 1) * kPageTokens < end ? (page + 1) * kPageTokens : end;
    const int at = offset + t % kPageTokens / 2 * 32;
    const uint16_t *v = pages[page] + at, *near = pages[stop < end ? page + 1 : page] + at, *next = ahead[page] + at;
    for (; t < stop; v += 32, near += 32, next += 32) {
      Floats even[D], odd[D];
      each_pair<1, D>([&](int, int j) {
        load_bf16_pairs(v + j * 512, even[j], odd[j]);
        prefetch(near + j * 512);
        prefetch_far(next + j * 512);
      });
      if (t % 2 == 0) add(even);
      if (t < stop) add(odd);
    }
  }
  each_pair<Q, D>([&](int u, int j) { store(out + u * head_dim + j * 16, acc[u][j]); });
}

// The same over the tokens before `end` after widen_values(), [token][D][16 dimensions]; meanwhile the lines at `ahead`, by page, `step`
// elements apart, go to L2.
template <int Q, int D>
void wide_value_tile(const float* weights, const float* values, const uint16_t* const* ahead, int offset, int step, int end, int head_dim,
                     float* out) {
  Floats acc[Q][D];
  each_pair<Q, D>([&](int u, int j) { acc[u][j] = load(out + u * head_dim + j * 16); });
  const auto add = [&](int t) {
    Floats v[D];
    each_pair<1, D>([&](int, int j) { v[j] = load(values + (t * D + j) * 16); });
#pragma GCC unroll 16
    for (int u = 0; u < Q; ++u) {
      const Floats weight = splat(weights[u * kBlockTokens + t]);
      each_pair<1, D>([&](int, int j) { acc[u][j] = fma(weight, v[j], acc[u][j]); });
    }
  };
  int t = 0;
  for (; t + 2 <= end; t += 2) {
    prefetch_far(ahead[t / kPageTokens] + offset + t % kPageTokens / 2 * step);
    add(t), add(t + 1);
  }
  if (t < end) add(t);
  each_pair<Q, D>([&](int u, int j) { store(out + u * head_dim + j * 16, acc[u][j]); });
}

template <int D>
void widen_values(const uint16_t* const* pages, int offset, int end, float* out) {
  for (int t = 0; t < end; t += 2) {
    const uint16_t* const v = pages[t / kPageTokens] + offset + t % kPageTokens / 2 * 32;
    each_pair<1, D>([&](int, int j) {
      Floats even, odd;
      load_bf16_pairs(v + j * 512, even, odd);
      store(out + (t * D + j) * 16, even);
      store(out + ((t + 1) * D + j) * 16, odd);
    });
  }
}

template <int Q>
void score_queries(const float* queries, const uint16_t* const* keys, ptrdiff_t values, int blocks, int head_dim, float scale,
                   float* scores) {
  constexpr int T = tile_width(Q);
  int t = 0;
  for (; t + T <= blocks; t += T) score_tile<Q, T>(queries, StoredKeys<T>(keys + t, values), head_dim, scale, scores + t * 16);
  for (; t < blocks; ++t) score_tile<Q, 1>(queries, StoredKeys<1>(keys + t, values), head_dim, scale, scores + t * 16);
}

template <int Q>
void value_queries(const float* weights, const uint16_t* const* pages, const uint16_t* const* ahead, int begin, int end, int head_dim,
                   float* out) {
  constexpr int D = tile_width(Q);
  int i = 0;
  for (; i + 16 * D <= head_dim; i += 16 * D) value_tile<Q, D>(weights, pages, ahead, i * 32, begin, end, head_dim, out + i);
  for (; i < head_dim; i += 16) value_tile<Q, 1>(weights, pages, ahead, i * 32, begin, end, head_dim, out + i);
}

// The tile functions by number of queries, [Q - 1].
using ScoreFunction = void (*)(const float*, const uint16_t* const*, ptrdiff_t, int, int, float, float*);
using ValueFunction = void (*)(const float*, const uint16_t* const*, const uint16_t* const*, int, int, int, float*);
template <int... q>
struct TileTable {
  static constexpr ScoreFunction scores[] = {score_queries<q + 1>...};
  static constexpr ValueFunction values[] = {value_queries<q + 1>...};
};
template <int... q>
constexpr TileTable<q...> tile_table(std::integer_sequence<int, q...>) {
  return {};
}
using Tiles = decltype(tile_table(std::make_integer_sequence<int, kQueries>()));

constexpr int kWidth = tile_width(kQueries);
constexpr size_t wide_floats(int head_dim) { return size_t(kWidth) * 16 * size_t(head_dim < kBlockTokens ? kBlockTokens : head_dim); }

// The query vectors of a task, rows ascending, and where its working memory stands.
struct AttentionView {
  const AttentionTask& task;
  const int d, vectors;
  float* const wide;                 // keys or values that several tiles share
  float* const queries;              // tiles of kQueries vectors, [head_dim][vectors of the tile] each
  float* const scores;               // [vector][kBlockTokens]
  float *const maxima, *const sums;  // of the blocks merged so far

  explicit AttentionView(const AttentionTask& t)
      : task(t),
        d(t.head_dim),
        vectors((t.row_end - t.row_begin) * t.group),
        wide(t.scratch),
        queries(wide + wide_floats(d)),
        scores(queries + size_t(vectors) * d),
        maxima(scores + size_t(vectors) * kBlockTokens),
        sums(maxima + vectors) {}

  int limit(int vector) const { return task.position + task.row_begin + vector / task.group + 1; }  // tokens that it sees
  int visible(int vector, int block) const {                                                        // those of one block
    const int left = limit(vector) - block * kBlockTokens;
    return left < kBlockTokens ? left : kBlockTokens;
  }
  int first(int block) const {  // the first vector that sees anything of it
    int u = 0;
    while (limit(u) <= block * kBlockTokens) u += task.group;
    return u;
  }
  size_t offset(int vector, size_t stride) const {
    return (task.row_begin + vector / task.group) * stride + size_t(vector % task.group) * d;
  }
  int tile(int u) const { return vectors - u < kQueries ? vectors - u : kQueries; }
};

size_t attention_partial(int rows, int group, int head_dim) { return size_t(rows) * group * (size_t(head_dim) + 2); }

size_t attention_scratch(int rows, int group, int head_dim) {
  return wide_floats(head_dim) + size_t(rows) * group * (kBlockTokens + size_t(head_dim) + 2) + attention_partial(rows, group, head_dim);
}

void pack_queries(const AttentionView& view) {
  for (int u = 0; u < view.vectors; u += kQueries) {
    const int count = view.tile(u);
    float* const packed = view.queries + size_t(u) * view.d;
    for (int j = 0; j < count; ++j) {
      const float* const q = view.task.q + view.offset(u + j, view.task.q_stride);
      for (int i = 0; i < view.d; ++i) packed[i * count + j] = q[i];
    }
  }
}

// The pages of one block: blocks of 16 keys, values, and what the next block begins with.
struct BlockPages {
  static constexpr int kPages = kBlockTokens / kPageTokens;
  const uint16_t *keys[2 * kPages], *values[kPages], *ahead[kPages];

  BlockPages(const AttentionView& view, int block) {
    const AttentionTask& task = view.task;
    const int start = block * kBlockTokens, context = view.limit(view.vectors - 1);
    const size_t half_page = size_t(kPageTokens) * size_t(view.d);
    for (int p = 0; p < kPages; ++p) {
      const int here = start + p * kPageTokens, next = here + kBlockTokens;
      if (here >= context) break;
      keys[2 * p] = task.kv[task.pages[here / kPageTokens]];
      keys[2 * p + 1] = keys[2 * p] + size_t(16) * view.d;
      values[p] = keys[2 * p] + half_page;
      ahead[p] = next < context ? task.kv[task.pages[next / kPageTokens]] : values[p];
    }
  }
};

// So many of the vectors are whole tiles that share what is widened once; of a single tile none are.
constexpr int sharing(int vectors) { return vectors < 2 * kQueries ? 0 : vectors / kQueries * kQueries; }

void score_block(const AttentionView& view, const BlockPages& pages, int first, int block) {
  const int d = view.d, begin = first / kQueries * kQueries, end = begin + sharing(view.vectors - begin);
  const ptrdiff_t values = ptrdiff_t(kPageTokens) * d;  // of a page, behind its keys
  const int blocks = end > begin ? (view.visible(view.vectors - 1, block) + kPageTokens - 1) / kPageTokens * 2 : 0;
  for (int t = 0; t < blocks; t += kWidth) {
    widen_keys<kWidth>(pages.keys + t, d, view.wide);
    for (int u = begin, n = 0; u < end; u += kQueries, ++n) {
      if (view.visible(u + kQueries - 1, block) <= t * 16) continue;
      const WideKeys<kWidth> keys{view.wide, pages.keys[t + (n < kWidth ? n : 0)] + values, n < kWidth ? 32 : 0};
      score_tile<kQueries, kWidth>(view.queries + size_t(u) * d, keys, d, view.task.scale, view.scores + size_t(u) * kBlockTokens + t * 16);
    }
  }
  for (int u = end; u < view.vectors; u += kQueries) {
    const int count = view.tile(u);
    Tiles::scores[count - 1](view.queries + size_t(u) * d, pages.keys, values, (view.visible(u + count - 1, block) + 15) / 16, d,
                             view.task.scale, view.scores + size_t(u) * kBlockTokens);
  }
}

void value_block(const AttentionView& view, const BlockPages& pages, int first, int block, float* partial) {
  const int d = view.d, end = first + sharing(view.vectors - first);
  const auto share = [&](auto width, int i) {
    constexpr int D = decltype(width)::value;
    widen_values<D>(pages.values, i * 32, view.visible(view.vectors - 1, block), view.wide);
    for (int u = first, n = 0; u < end; u += kQueries, ++n)
      wide_value_tile<kQueries, D>(view.scores + size_t(u) * kBlockTokens, view.wide, pages.ahead, (i / 16 + (n < D ? n : 0)) * 512,
                                   n < D ? 32 : 0, view.visible(u, block), d, partial + size_t(u) * d + i);
  };
  int i = end > first ? 0 : d;
  for (; i + 16 * kWidth <= d; i += 16 * kWidth) share(std::integral_constant<int, kWidth>(), i);
  for (; i < d; i += 16) share(std::integral_constant<int, 1>(), i);

  for (int u = first; u < view.vectors; u += kQueries) {
    const int count = view.tile(u);
    const int shared = view.visible(u, block);  // rows ascend, so the first query of a tile sees least
    if (u >= end)
      Tiles::values[count - 1](view.scores + size_t(u) * kBlockTokens, pages.values, pages.ahead, 0, shared, d, partial + size_t(u) * d);
    for (int j = u + 1; j < u + count; ++j)
      if (view.visible(j, block) > shared)
        Tiles::values[0](view.scores + size_t(j) * kBlockTokens, pages.values, pages.ahead, shared, view.visible(j, block), d,
                         partial + size_t(j) * d);
  }
}

// (o, m, l) of one block for every vector that sees any of it: partial [vector][head_dim], [vector], [vector].
void attend_block(const AttentionView& view, int block, float* partial) {
  const int d = view.d, vectors = view.vectors, first = view.first(block);
  float *const maxima = partial + size_t(vectors) * d, *const sums = maxima + vectors;
  const BlockPages pages(view, block);
  score_block(view, pages, first, block);

  for (int u = first; u < vectors; ++u) {
    float* const s = view.scores + size_t(u) * kBlockTokens;
    const int n = view.visible(u, block);
    const float m = largest(s, n);
    Floats sum = splat(0.0f);
    for (int t = 0; t < n; t += 16) {
      Floats e = exponential(load(s + t) - splat(m));
      if (t + 16 > n) e = keep_first(e, n - t, splat(0.0f));
      store(s + t, e);
      sum = sum + e;
    }
    maxima[u] = m;
    sums[u] = reduce_add(sum);
    for (int i = 0; i < d; i += 16) store(partial + size_t(u) * d + i, splat(0.0f));
  }

  value_block(view, pages, first, block, partial);
}

void begin_merge(const AttentionView& view) {
  for (int u = 0; u < view.vectors; ++u) {
    view.maxima[u] = -INFINITY;
    view.sums[u] = 0.0f;
    float* const out = view.task.out + view.offset(u, view.task.out_stride);
    for (int i = 0; i < view.d; i += 16) store(out + i, splat(0.0f));
  }
}

void merge_block(const AttentionView& view, int block, const float* partial) {
  const int d = view.d;
  const float *const maxima = partial + size_t(view.vectors) * d, *const sums = maxima + view.vectors;
  for (int u = view.first(block); u < view.vectors; ++u) {
    const float merged = view.maxima[u] > maxima[u] ? view.maxima[u] : maxima[u];
    const float before = exponential(view.maxima[u] - merged), now = exponential(maxima[u] - merged);
    view.sums[u] = __builtin_fmaf(view.sums[u], before, sums[u] * now);
    view.maxima[u] = merged;
    const float* const part = partial + size_t(u) * d;
    float* const out = view.task.out + view.offset(u, view.task.out_stride);
    for (int i = 0; i < d; i += 16) store(out + i, fma(load(out + i), splat(before), load(part + i) * splat(now)));
  }
}

void end_merge(const AttentionView& view) {
  for (int u = 0; u < view.vectors; ++u) {
    float* const out = view.task.out + view.offset(u, view.task.out_stride);
    for (int i = 0; i < view.d; i += 16) store(out + i, load(out + i) / splat(view.sums[u]));
  }
}

void attention(const AttentionTask& task) {
  const AttentionView view(task);
  float* const partial = view.sums + view.vectors;
  pack_queries(view);
  begin_merge(view);
  for (int block = 0; block * kBlockTokens < view.limit(view.vectors - 1); ++block) {
    attend_block(view, block, partial);
    merge_block(view, block, partial);
  }
  end_merge(view);
}

void attention_blocks(const AttentionTask& task, int begin, int end, float* partials) {
  const AttentionView view(task);
  pack_queries(view);
  for (int block = begin; block < end; ++block)
    attend_block(view, block,
                 partials + size_t(block - begin) * attention_partial(task.row_end - task.row_begin, task.group, task.head_dim));
}

void attention_merge(const AttentionTask& task, const float* partials) {
  const AttentionView view(task);
  begin_merge(view);
  for (int block = 0; block * kBlockTokens < view.limit(view.vectors - 1); ++block)
    merge_block(view, block, partials + size_t(block) * attention_partial(task.row_end - task.row_begin, task.group, task.head_dim));
  end_merge(view);
}

}  // namespace
}  // namespace qwenbox
