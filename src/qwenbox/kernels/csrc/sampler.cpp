// The choice of the next token: docs/numeric-contract.md, section Sampling.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include "runtime.h"

namespace qwenbox {
namespace {

using Scratch = Runtime::SamplerScratch;

constexpr int kHeap = 1024;  // more candidates than this are found by sorting everything

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

double uniform(const qw_sample_row& row) { return double(mix(mix(mix(row.seed) ^ row.choice) ^ row.position) >> 11) * 0x1p-53; }

// Integers in the order of floats, both zeros equal.
uint32_t ordered(float value) {
  value += 0.0f;
  uint32_t b;
  memcpy(&b, &value, 4);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// Four floats in the compiler's own vectors; masks are all ones where a comparison holds.
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
constexpr int kStride = 32;  // values that are tested together

Lanes load(const float* x) {
  Lanes v;
  memcpy(&v, x, sizeof v);
  return v;
}

bool any(Mask mask) {
  uint64_t words[2];
  memcpy(words, &mask, sizeof words);
  return words[0] | words[1];
}

// Largest value, NaN if there is one.
float largest(const float* x, int n) {
  const float bottom = -INFINITY;
  Lanes m[4] = {bottom - Lanes{}, bottom - Lanes{}, bottom - Lanes{}, bottom - Lanes{}};
  Mask nan = {};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 4; ++j) {
      const Lanes v = load(x + i + 4 * j);
      nan |= v != v;
      m[j] = v > m[j] ? v : m[j];
    }
  float best = bottom;
  for (int j = 0; j < 16; ++j) best = std::max(best, m[j / 4][j % 4]);
  for (; i < n; ++i) {
    if (std::isnan(x[i])) return NAN;
    best = std::max(best, x[i]);
  }
  return any(nan) ? NAN : best;
}

// Calls f(i), i ascending, for the values of [begin, n) that are above (or equal to) bound() and for some near them, until f returns false.
template <bool equal, class Bound, class F>
void scan(const float* x, int begin, int n, const Bound& bound, const F& f) {
  int i = begin;
  for (; i + kStride <= n; i += kStride) {
    const Lanes limit = bound() - Lanes{};
    Mask found = {};
    for (int j = 0; j < kStride; j += 4) found |= equal ? load(x + i + j) == limit : load(x + i + j) > limit;
    if (!any(found)) continue;
    for (int j = i; j < i + kStride; ++j)
      if (!f(j)) return;
  }
  for (; i < n; ++i)
    if (!f(i)) return;
}

int first_of(const float* x, int n, float value) {
  int found = 0;
  scan<true>(
      x, 0, n, [=] { return value; },
      [&](int i) {
        found = i;
        return x[i] != value;
      });
  return found;
}

// Ids of the k largest x / divisor, largest first, ties to the lower id.
void top_by_heap(const float* x, int n, float divisor, int k, Scratch& scratch) {
  // Keys order by value, then by falling id; the heap's front is the worst candidate.
  auto& heap = scratch.keys;
  heap.clear();
  const auto key = [&](int id) { return uint64_t(ordered(x[id] / divisor)) << 32 | uint32_t(~id); };
  int i = 0;
  for (; i < n && int(heap.size()) < k; ++i) heap.push_back(key(i));
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto worst = [&] { return x[int32_t(~uint32_t(heap.front()))]; };
  // Division keeps the order, so what is not above the undivided worst cannot enter.
  scan<false>(x, i, n, worst, [&](int id) {
    if (!(x[id] > worst()) || key(id) < heap.front()) return true;
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.back() = key(id);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
    return true;
  });
  std::sort_heap(heap.begin(), heap.end(), std::greater<>());
  scratch.ids.resize(heap.size());
  for (size_t j = 0; j < heap.size(); ++j) scratch.ids[j] = int32_t(~uint32_t(heap[j]));
}

// The same for all ids with weight >= least (and > 0), by a stable radix sort: three passes of 11 bits.
void top_by_sort(const float* x, const float* weights, int n, float divisor, double least, Scratch& scratch) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  auto &from = scratch.keys, &to = scratch.sorted;
  from.clear();
  for (int i = 0; i < n; ++i)
    if (weights[i] > 0 && double(weights[i]) >= least) from.push_back(uint64_t(~ordered(x[i] / divisor)) << 32 | uint32_t(i));
  to.resize(from.size());
  for (int shift = 32; shift < 64; shift += kBits) {
    size_t starts[kBuckets] = {};
    for (uint64_t key : from) ++starts[key >> shift & (kBuckets - 1)];
    size_t sum = 0;
    for (size_t& start : starts) {
      const size_t count = start;
      start = sum;
      sum += count;
    }
    for (uint64_t key : from) to[starts[key >> shift & (kBuckets - 1)]++] = key;
    from.swap(to);
  }
  scratch.ids.resize(from.size());
  for (size_t j = 0; j < from.size(); ++j) scratch.ids[j] = int32_t(uint32_t(from[j]));
}

bool changed(const qw_sample_row& row) {
  return row.allowed || row.num_bias > 0 || row.repetition != 1.0f || row.presence != 0.0f || row.frequency != 0.0f;
}

// What the mask does not allow becomes minus infinity.
void restrict_to(const uint32_t* allowed, float* x, int n) {
  for (int i = 0; i < n; i += 32) {
    const uint32_t word = allowed[i / 32];
    const int count = std::min(32, n - i);
    if (word == ~uint32_t(0)) continue;
    for (int j = 0; j < count; ++j) x[i + j] = word >> j & 1 ? x[i + j] : -INFINITY;
  }
}

void penalise(const qw_sample_row& row, float* x, int n, Scratch& scratch) {
  for (int i = 0; i < row.num_bias; ++i)
    if (row.bias_ids[i] >= 0 && row.bias_ids[i] < n) x[row.bias_ids[i]] += row.bias[i];
  auto& counts = scratch.counts;  // all zero between calls
  counts.resize(std::max(counts.size(), size_t(n)), 0);
  const auto each = [n](const int32_t* ids, int count, const auto& f) {
    for (int i = 0; i < count; ++i)
      if (ids[i] >= 0 && ids[i] < n) f(ids[i]);
  };
  if (row.repetition != 1.0f) {
    const auto weaken = [&](int id) {
      if (!counts[size_t(id)]) x[id] = x[id] > 0 ? x[id] / row.repetition : x[id] * row.repetition;
      counts[size_t(id)] = 1;
    };
    const auto clear = [&](int id) { counts[size_t(id)] = 0; };
    each(row.prompt, row.num_prompt, weaken);
    each(row.output, row.num_output, weaken);
    each(row.prompt, row.num_prompt, clear);
    each(row.output, row.num_output, clear);
  }
  if (row.presence != 0.0f || row.frequency != 0.0f) {
    each(row.output, row.num_output, [&](int id) { ++counts[size_t(id)]; });
    each(row.output, row.num_output, [&](int id) {
      if (counts[size_t(id)]) x[id] -= row.presence + row.frequency * float(counts[size_t(id)]);
      counts[size_t(id)] = 0;
    });
  }
}

// One of `count` candidates with these weights; ids null: candidate i is id i.
int draw(const float* weights, const int32_t* ids, int count, const qw_sample_row& row) {
  double total = 0;
  for (int i = 0; i < count; ++i) total += double(weights[i]);
  if (row.top_p < 1.0) {
    const double enough = row.top_p * total;
    double mass = 0;
    for (int i = 0; i < count; ++i) {
      mass += double(weights[i]);
      if (mass < enough) continue;
      count = i + 1;
      total = mass;
      break;
    }
  }
  if (row.min_p > 0.0) {
    int kept = 0;  // candidates descend, so the kept ones are a prefix
    total = 0;
    for (; kept < count && double(weights[kept]) >= row.min_p; ++kept) total += double(weights[kept]);
    count = kept;
  }
  const double target = uniform(row) * total;
  double mass = 0;
  int i = 0;
  for (; i + 1 < count; ++i) {
    mass += double(weights[i]);
    if (mass > target) break;
  }
  return ids ? ids[i] : i;
}

int choose(const float* x, int n, float m, const qw_sample_row& row, const Kernels& kernels, Scratch& scratch) {
  const float t = row.temperature;
  // A bias may be infinite, and a tiny temperature makes infinities: then the largest takes all.
  if (t == 0.0f || !std::isfinite(m / t)) return first_of(x, n, m);
  double unused;
  const auto weigh = [&](const float* values, int count) {
    scratch.weights.resize(size_t(count));
    kernels.exp_sum(values, count, scratch.weights.data(), &unused);
  };
  const auto divided = [&](const float* values, const int32_t* ids, int count) {
    scratch.values.resize(size_t(count));
    for (int i = 0; i < count; ++i) scratch.values[size_t(i)] = (ids ? values[ids[i]] : values[i]) / t;
    return scratch.values.data();
  };
  const int k = row.top_k > 0 ? std::min(row.top_k, n) : n;
  if (row.top_k > 0 && k <= kHeap) {
    top_by_heap(x, n, t, k, scratch);
    weigh(divided(x, scratch.ids.data(), k), k);
    return draw(scratch.weights.data(), scratch.ids.data(), k, row);
  }
  weigh(divided(x, nullptr, n), n);
  if (row.top_k <= 0 && row.top_p >= 1.0 && row.min_p <= 0.0) return draw(scratch.weights.data(), nullptr, n, row);
  top_by_sort(x, scratch.weights.data(), n, t, k == n && row.top_p >= 1.0 ? row.min_p : 0.0, scratch);
  const int count = std::min(k, int(scratch.ids.size()));
  weigh(divided(x, scratch.ids.data(), count), count);
  return draw(scratch.weights.data(), scratch.ids.data(), count, row);
}

}  // namespace

void Runtime::sample(const float* logits, int vocab, const qw_sample_row* rows, int num_rows, int max_top, qw_sample_result* results,
                     int32_t* top_ids, float* top_logprobs) {
  pool.check();
  for (int i = 0; i < num_rows; ++i) {
    const qw_sample_row& row = rows[i];
    const auto refuse = [&](const char* what) { throw std::runtime_error("sampling row " + std::to_string(i) + ": " + what); };
    if (row.vocab_limit < 1 || row.vocab_limit > vocab) refuse("the vocabulary limit is outside the row");
    if (row.logprobs > max_top || row.logprobs > row.vocab_limit) refuse("more log-probabilities than tokens or room");
    if (!(row.temperature >= 0) || !(row.repetition > 0)) refuse("temperature must be >= 0 and repetition_penalty > 0");
    if (!(row.top_p > 0) || !(row.min_p >= 0 && row.min_p <= 1)) refuse("top_p must be > 0 and min_p between 0 and 1");
  }
  pool.run(num_rows, 1, [&](int worker, int64_t begin, int64_t end) {
    Scratch& scratch = scratches_[size_t(worker)];
    for (int64_t i = begin; i < end; ++i) {
      const qw_sample_row& row = rows[i];
      qw_sample_result& result = results[i];
      const float* const raw = logits + size_t(i) * size_t(vocab);
      const int n = row.vocab_limit;
      const float m = largest(raw, n);
      result = {-1, 0.0f};
      if (!std::isfinite(m)) continue;
      if (changed(row)) {
        scratch.logits.assign(raw, raw + n);
        penalise(row, scratch.logits.data(), n, scratch);
        if (row.allowed) restrict_to(row.allowed, scratch.logits.data(), n);
        const float biased = largest(scratch.logits.data(), n);
        if (std::isnan(biased) || (row.allowed && biased == -INFINITY)) continue;
        result.id = choose(scratch.logits.data(), n, biased, row, kernels, scratch);
      } else {
        result.id = choose(raw, n, m, row, kernels, scratch);
      }
      if (row.logprobs < 0) continue;
      double sum;
      kernels.exp_sum(raw, n, nullptr, &sum);
      const double log_sum = std::log(sum);
      const auto logprob = [&](int id) { return float((double(raw[id]) - double(m)) - log_sum); };
      result.logprob = logprob(result.id);
      if (row.logprobs == 0) continue;
      top_by_heap(raw, n, 1.0f, row.logprobs, scratch);
      for (int j = 0; j < row.logprobs; ++j) {
        top_ids[i * max_top + j] = scratch.ids[size_t(j)];
        top_logprobs[i * max_top + j] = logprob(scratch.ids[size_t(j)]);
      }
    }
  });
}

}  // namespace qwenbox
