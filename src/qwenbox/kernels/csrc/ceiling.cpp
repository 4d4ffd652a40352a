// Measurement of ceilings: the reader of memory, the portable products, and the choice among methods. See ceiling.h.
#include "ceiling.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

namespace qwenbox::ceiling {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs f(thread) on `threads` threads that begin together; seconds from the common start to the last end.
template <class F>
double together(int threads, F f) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++) {
    others.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      f(t);
    });
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  go.store(true, std::memory_order_release);
  f(0);
  for (auto& thread : others) thread.join();
  return seconds_since(start);
}

typedef uint64_t Line __attribute__((vector_size(64)));

// Locality is an immediate of the prefetch instruction, so each kind is its own loop.
template <int Prefetch, int Streams>
uint64_t read_streams(const char* begin, size_t bytes, int distance) {
  const size_t run = bytes / Streams / 128 * 128;
  Line sum[Streams] = {};
  for (size_t i = 0; i < run; i += 128) {
    for (int s = 0; s < Streams; s++) {
      const char* p = begin + s * run + i;
      if (Prefetch == 1) __builtin_prefetch(p + distance, 0, 3), __builtin_prefetch(p + distance + 64, 0, 3);
      if (Prefetch == 2) __builtin_prefetch(p + distance, 0, 0), __builtin_prefetch(p + distance + 64, 0, 0);
      sum[s] ^= *reinterpret_cast<const Line*>(p) ^ *reinterpret_cast<const Line*>(p + 64);
    }
  }
  uint64_t all = 0;
  for (const Line& line : sum)
    for (int i = 0; i < 8; i++) all ^= line[i];
  return all;
}

using Reader = uint64_t (*)(const char*, size_t, int);

template <int Prefetch>
Reader reader(int streams) {
  switch (streams) {
    case 1:
      return read_streams<Prefetch, 1>;
    case 2:
      return read_streams<Prefetch, 2>;
    case 4:
      return read_streams<Prefetch, 4>;
    default:
      return nullptr;
  }
}

Reader reader(int prefetch, int streams) {
  switch (prefetch) {
    case 0:
      return reader<0>(streams);
    case 1:
      return reader<1>(streams);
    case 2:
      return reader<2>(streams);
    default:
      return nullptr;
  }
}

// The portable products: plain multiply-adds that the compiler vectorises for the baseline; a block is 16 channels by 128 inputs.
template <class Acc, class In>
double generic_fed(Operands& o, long blocks) {
  const In* w = reinterpret_cast<const In*>(o.w);
  const In* x = reinterpret_cast<const In*>(o.x);
  for (long b = 0; b < blocks; b++) {
    Acc acc[16] = {};
    for (int k = 0; k < 128; k++)
      for (int j = 0; j < 16; j++) acc[j] += Acc(w[k * 16 + j]) * Acc(x[k]);
    std::memcpy(o.out, acc, sizeof acc);
    asm volatile("" ::: "memory");
  }
  return 2.0 * 16 * 128;
}

template <class Acc>
double generic_registers(Operands&, long blocks) {
  typedef Acc Vec __attribute__((vector_size(16)));
  Vec a = Vec{} + Acc(1), b = Vec{} + Acc(1), acc[8] = {};
  for (long i = 0; i < blocks; i++) {
    asm volatile("" : "+m"(a), "+m"(b));
    const Vec x = a, y = b;
    for (int k = 0; k < 64; k++)
      for (auto& v : acc) v = v * x + y;
    asm volatile("" : "+m"(acc));
  }
  return 2.0 * 64 * 8 * 4;
}

bool always() { return true; }

const Method generic_int8{"generic", 0, always, nullptr, nullptr, generic_registers<int32_t>, generic_fed<int32_t, int8_t>};
const Method generic_bf16{"generic", 1, always, nullptr, nullptr, generic_registers<float>, generic_fed<float, float>};

const Method* const kMethods[] = {
#if defined(__x86_64__)
    &amx_int8,     &avx512_int8,  &avxvnni_int8, &avx2_int8, &amx_bf16, &avx512_bf16, &avx512_float, &avx2_float,
#endif
    &generic_int8, &generic_bf16,
};

double thread_rate(const Method& method, bool fed, double seconds) {
  void* memory = std::aligned_alloc(4096, sizeof(Operands));
  if (!memory) return 0;
  Operands& operands = *new (memory) Operands;
  std::memset(operands.x, 1, sizeof operands.x);
  std::memset(operands.w, 1, sizeof operands.w);
  const auto run = fed ? method.fed : method.registers;
  if (method.enter) method.enter();
  const auto begin = Clock::now();
  long blocks = 64;
  std::vector<double> rates;
  // Slices of about two milliseconds: long enough for the clock, short enough that the median ignores an interruption.
  while (rates.empty() || seconds_since(begin) < seconds) {
    const auto start = Clock::now();
    const double operations = run(operands, blocks) * double(blocks);
    const double took = seconds_since(start);
    if (took < 1e-3 && blocks < (1L << 40)) {
      blocks *= 2;
    } else {
      rates.push_back(operations / took);
    }
  }
  if (method.leave) method.leave();
  std::free(memory);
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace
}  // namespace qwenbox::ceiling

using namespace qwenbox::ceiling;

void* qb_ceiling_buffer(uint64_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  madvise(p, bytes, MADV_HUGEPAGE);
  for (uint64_t i = 0; i < bytes; i += 4096) static_cast<volatile char*>(p)[i] = char(i >> 12);
  return p;
}

void qb_ceiling_buffer_free(void* buffer, uint64_t bytes) { munmap(buffer, bytes); }

double qb_ceiling_read(const void* buffer, uint64_t bytes, int32_t threads, int32_t prefetch, int32_t distance, int32_t streams) {
  const Reader read = reader(prefetch, streams);
  if (!read || threads < 1) return 0;
  const size_t share = bytes / threads / 4096 * 4096;
  std::atomic<uint64_t> sink{0};
  const double took = together(threads, [&](int t) { sink ^= read(static_cast<const char*>(buffer) + t * share, share, distance); });
  return double(share) * threads / took;
}

const char* qb_ceiling_method(int32_t kind, int32_t index) {
  for (const Method* method : kMethods)
    if (method->kind == kind && method->available() && index-- == 0) return method->name;
  return nullptr;
}

double qb_ceiling_rate(const char* method, int32_t kind, int32_t feed, int32_t threads, double seconds) {
  for (const Method* candidate : kMethods) {
    if (candidate->kind != kind || std::strcmp(candidate->name, method) != 0 || !candidate->available() || threads < 1) continue;
    std::vector<double> rates(threads);
    together(threads, [&](int t) { rates[t] = thread_rate(*candidate, feed != 0, seconds); });
    double total = 0;
    for (double rate : rates) total += rate;
    return total;
  }
  return 0;
}
