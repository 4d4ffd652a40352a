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

constexpr int kQueries = 2 * kTileRows;  // query vectors that a tile keeps in registers

// Blocks of 16 tokens or dimensions beside `queries` query vectors, so that enough sums are under way at a time.
constexpr int tile_width(int queries) { return queries > 4 ? 1 : queries > 2 ? kQueries / 4 : kQueries / 2; }

// f(u, t) for all u < Q, t < T, unrolled, so that arrays of vectors live in registers.
template <int Q, int T, class F>
QWENBOX_INLINE void each_pair(const F& f) {
#pragma GCC unroll 16
  for (int u = 0; u < Q; ++u)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) f(u, t);
}

// Scores of Q queries against T blocks of 16 tokens; lanes are tokens. scores[query][kBlockTokens]. The keys after next and the values of
// the same tokens are on their way while this computes: pages are too short for the processor to foresee them.
template <int Q, int T>
void score_tile(const float* const* queries, const uint16_t* const* keys, ptrdiff_t values, int head_dim, float scale, float* scores) {
  Floats acc[Q][T];
  each_pair<Q, T>([&](int u, int t) { acc[u][t] = splat(0.0f); });
  for (int i = 0; i < head_dim; i += 2) {
    Floats even[T], odd[T];
    each_pair<1, T>([&](int, int t) {
      load_bf16_pairs(keys[t] + i * 16, even[t], odd[t]);
      prefetch(keys[t + T] + i * 16);
      prefetch(keys[t] + values + i * 16);
    });
    each_pair<Q, T>([&](int u, int t) { acc[u][t] = fma(splat(queries[u][i]), even[t], acc[u][t]); });
    each_pair<Q, T>([&](int u, int t) { acc[u][t] = fma(splat(queries[u][i + 1]), odd[t], acc[u][t]); });
  }
  each_pair<Q, T>([&](int u, int t) { store(scores + u * kBlockTokens + t * 16, acc[u][t] * splat(scale)); });
}

// out[query][head_dim] += weights x values over the tokens [begin, end) of a block, for D blocks of 16 dimensions; lanes are dimensions.
template <int Q, int D>
void value_tile(const float* weights, const uint16_t* const* pages, int begin, int end, int head_dim, float* out) {
  Floats acc[Q][D];
  each_pair<Q, D>([&](int u, int j) { acc[u][j] = load(out + u * head_dim + j * 16); });
  int t = begin;
  const auto token = [&](bool second) {
    each_pair<1, D>([&](int, int j) {
      Floats even, odd;
      load_bf16_pairs(pages[t / kPageTokens] + j * 512 + t % kPageTokens / 2 * 32, even, odd);
      const Floats v = second ? odd : even;
      each_pair<Q, 1>([&](int u, int) { acc[u][j] = fma(splat(weights[u * kBlockTokens + t]), v, acc[u][j]); });
    });
    ++t;
  };
  if (t % 2 && t < end) token(true);
  while (t + 2 <= end) {
    const int stop = (t / kPageTokens + 1) * kPageTokens < end ? (t / kPageTokens + 1) * kPageTokens : end;
    const uint16_t* v = pages[t / kPageTokens] + t % kPageTokens / 2 * 32;
    for (; t + 2 <= stop; t += 2, v += 32) {
      Floats even[D], odd[D];
      each_pair<1, D>([&](int, int j) { load_bf16_pairs(v + j * 512, even[j], odd[j]); });
      each_pair<Q, D>([&](int u, int j) { acc[u][j] = fma(splat(weights[u * kBlockTokens + t]), even[j], acc[u][j]); });
      each_pair<Q, D>([&](int u, int j) { acc[u][j] = fma(splat(weights[u * kBlockTokens + t + 1]), odd[j], acc[u][j]); });
    }
  }
  if (t < end) token(false);
  each_pair<Q, D>([&](int u, int j) { store(out + u * head_dim + j * 16, acc[u][j]); });
}

template <int Q>
void score_queries(const float* const* queries, const uint16_t* const* keys, ptrdiff_t values, int blocks, int head_dim, float scale,
                   float* scores) {
  constexpr int T = tile_width(Q);
  int t = 0;
  for (; t + T <= blocks; t += T) score_tile<Q, T>(queries, keys + t, values, head_dim, scale, scores + t * 16);
  for (; t < blocks; ++t) score_tile<Q, 1>(queries, keys + t, values, head_dim, scale, scores + t * 16);
}

template <int Q>
void value_queries(const float* weights, const uint16_t* const* pages, int begin, int end, int head_dim, float* out) {
  constexpr int D = tile_width(Q);
  const uint16_t* moved[kBlockTokens / kPageTokens];
  const int first = begin / kPageTokens, last = (end + kPageTokens - 1) / kPageTokens;
  int i = 0;
  const auto move = [&] {
    for (int p = first; p < last; ++p) moved[p] = pages[p] + i * 32;
  };
  for (; i + 16 * D <= head_dim; i += 16 * D) move(), value_tile<Q, D>(weights, moved, begin, end, head_dim, out + i);
  for (; i < head_dim; i += 16) move(), value_tile<Q, 1>(weights, moved, begin, end, head_dim, out + i);
}

// The tile functions by number of queries, [Q - 1].
using ScoreFunction = void (*)(const float* const*, const uint16_t* const*, ptrdiff_t, int, int, float, float*);
using ValueFunction = void (*)(const float*, const uint16_t* const*, int, int, int, float*);
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

size_t attention_scratch(int rows, int group, int head_dim) { return size_t(rows) * group * (kBlockTokens + head_dim + 4); }

void attention(const AttentionTask& task) {
  const int d = task.head_dim, group = task.group;
  const int vectors = (task.row_end - task.row_begin) * group;  // query vectors, rows ascending
  float* const scores = task.scratch;                           // [vector][kBlockTokens]
  float* const partial = scores + size_t(vectors) * kBlockTokens;
  float* const maxima = partial + size_t(vectors) * d;
  float* const sums = maxima + vectors;
  float* const before = sums + vectors;  // factors of the merge
  float* const now = before + vectors;
  const auto limit = [&](int vector) { return task.position + task.row_begin + vector / group + 1; };  // tokens that it sees
  const auto offset = [&](int vector, size_t stride) { return (task.row_begin + vector / group) * stride + size_t(vector % group) * d; };
  for (int u = 0; u < vectors; ++u) {
    maxima[u] = -INFINITY;
    sums[u] = 0.0f;
    float* out = task.out + offset(u, task.out_stride);
    for (int i = 0; i < d; i += 16) store(out + i, splat(0.0f));
  }
  const int context = limit(vectors - 1);
  for (int start = 0; start < context; start += kBlockTokens) {
    int first = 0;
    while (limit(first) <= start) first += group;
    const int length = context - start < kBlockTokens ? context - start : kBlockTokens;
    const uint16_t *keys[kBlockTokens / 16 + kQueries], *values[kBlockTokens / kPageTokens];
    int blocks = 0;
    for (int t = 0; t < length; t += kPageTokens) {
      const size_t page = size_t(task.pages[(start + t) / kPageTokens]) * task.page_stride;
      keys[blocks++] = task.keys + page;
      keys[blocks++] = task.keys + page + size_t(16) * d;
      values[t / kPageTokens] = task.values + page;
    }
    for (int i = 0; i < kQueries; ++i) keys[blocks + i] = values[0];  // what is read after the last keys
    const auto visible = [&](int vector) { return limit(vector) - start < kBlockTokens ? limit(vector) - start : kBlockTokens; };

    for (int u = first; u < vectors; u += kQueries) {
      const int count = vectors - u < kQueries ? vectors - u : kQueries;
      const float* queries[kQueries];
      for (int j = 0; j < count; ++j) queries[j] = task.q + offset(u + j, task.q_stride);
      Tiles::scores[count - 1](queries, keys, task.values - task.keys, (visible(u + count - 1) + 15) / 16, d, task.scale,
                               scores + size_t(u) * kBlockTokens);
    }

    for (int u = first; u < vectors; ++u) {
      float* const s = scores + size_t(u) * kBlockTokens;
      const int n = visible(u);
      const float m = largest(s, n);
      Floats sum = splat(0.0f);
      for (int t = 0; t < n; t += 16) {
        Floats e = exponential(load(s + t) - splat(m));
        if (t + 16 > n) e = keep_first(e, n - t, splat(0.0f));
        store(s + t, e);
        sum = sum + e;
      }
      const float merged = maxima[u] > m ? maxima[u] : m;
      before[u] = exponential(maxima[u] - merged);
      now[u] = exponential(m - merged);
      sums[u] = __builtin_fmaf(sums[u], before[u], reduce_add(sum) * now[u]);
      maxima[u] = merged;
      float* const part = partial + size_t(u) * d;
      for (int i = 0; i < d; i += 16) store(part + i, splat(0.0f));
    }

    for (int u = first; u < vectors; u += kQueries) {
      const int count = vectors - u < kQueries ? vectors - u : kQueries;
      const int shared = visible(u);  // rows ascend, so the first query of a tile sees least
      Tiles::values[count - 1](scores + size_t(u) * kBlockTokens, values, 0, shared, d, partial + size_t(u) * d);
      for (int j = u + 1; j < u + count; ++j)
        if (visible(j) > shared)
          Tiles::values[0](scores + size_t(j) * kBlockTokens, values, shared, visible(j), d, partial + size_t(j) * d);
    }

    for (int u = first; u < vectors; ++u) {
      const float* const part = partial + size_t(u) * d;
      float* const out = task.out + offset(u, task.out_stride);
      for (int i = 0; i < d; i += 16) store(out + i, fma(load(out + i), splat(before[u]), load(part + i) * splat(now[u])));
    }
  }
  for (int u = 0; u < vectors; ++u) {
    float* const out = task.out + offset(u, task.out_stride);
    for (int i = 0; i < d; i += 16) store(out + i, load(out + i) / splat(sums[u]));
  }
}

}  // namespace
}  // namespace qwenbox
