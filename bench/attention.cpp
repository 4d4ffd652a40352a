// How near attention comes to the machine's limits: multiply-adds of prompt rows against the L1-fed rate of float or bf16 products, reading
// keys and values for one row against a plain read. Usage: bench_attention [--json] [variant=NAME] [threads=N]; built with
// -DQWENBOX_CPP_TESTS=ON. Each row's ceiling is measured beside it, before and after each pass; medians of the passes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "ceiling.h"
#include "kernels.h"
#include "measure.h"

using namespace qwenbox;

namespace {

struct Shape {
  int group, head_dim;
};
constexpr Shape kShapes[] = {{4, 128}, {6, 128}, {7, 64}, {8, 128}};
struct Work {
  const char* phase;
  int rows, context;
};
constexpr Work kWorks[] = {{"prompt", 16, 4096}, {"prompt", 16, 32768}, {"decode", 1, 8192}};
constexpr int kPasses = 5;
constexpr size_t kCache = size_t(512) << 20;  // bytes of keys and values: more than the caches hold

// Best L1-fed rate of the methods for 16-bit operands, and its name.
double product_rate(int threads, const char** name) {
  double best = 0;
  for (int i = 0; const char* method = qb_ceiling_method(1, i); ++i) {
    const double rate = qb_ceiling_rate(method, 1, 1, threads, 0.04);
    if (rate > best) best = rate, *name = method;
  }
  return best;
}

double read_rate(const void* buffer, int threads) {
  double best = 0;
  for (int distance : {2048, 4096, 8192})
    for (int streams : {1, 4}) best = std::max(best, qb_ceiling_read(buffer, kCache, threads, 1, distance, streams));
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options, no_others)) return 2;
  const Kernels* const kernels = options.kernels;
  const int threads = options.threads;
  auto* const cache = static_cast<uint16_t*>(qb_ceiling_buffer(kCache));
  if (!cache) return std::puts("not enough memory"), 1;
  std::mt19937 random_bits(1);
  for (size_t i = 0; i < kCache / 2; ++i) cache[i] = uint16_t(0x3f00 + random_bits() % 256) ^ uint16_t(i % 3 ? 0x8000 : 0);

  for (const Shape& shape : kShapes)
    for (const Work& work : kWorks) {
      const bool decode = work.rows == 1;
      const size_t half_page = size_t(kPageTokens) * shape.head_dim;
      const int pages = work.context / kPageTokens, width = shape.group * shape.head_dim;
      const int heads = int(kCache / 2 / (2 * half_page * pages));  // as many as the buffer holds
      // A pass takes tens of milliseconds, and as many heads on each thread.
      const int used = decode ? heads : (int(8e9 / (4.0 * work.rows * width * work.context)) / threads + 1) * threads;
      std::vector<int32_t> table(static_cast<size_t>(pages));
      for (int i = 0; i < pages; ++i) table[i] = i;
      std::vector<float> q(size_t(work.rows) * width);
      for (auto& v : q) v = float(int(random_bits() % 2001) - 1000) / 3000;
      std::vector<double> rates, fractions, limits;
      const char* method = "read";
      double before = decode ? read_rate(cache, threads) : product_rate(threads, &method);
      for (int pass = 0; pass < kPasses; ++pass) {
        const auto begin = std::chrono::steady_clock::now();
        std::vector<std::thread> pool;
        std::atomic<int> claimed{0};
        for (int t = 0; t < threads; ++t)
          pool.emplace_back([&] {
            std::vector<float> out(q.size()), scratch(kernels->attention_scratch(work.rows, shape.group, shape.head_dim) + 15);
            for (int head; (head = claimed.fetch_add(1)) < used;) {
              AttentionTask task{};
              task.q = q.data();
              task.out = out.data();
              task.q_stride = task.out_stride = size_t(width);
              task.row_end = work.rows;
              task.position = work.context - work.rows;
              task.group = shape.group;
              task.head_dim = shape.head_dim;
              task.scale = float(1 / std::sqrt(double(shape.head_dim)));
              task.pages = table.data();
              // As in a model of as many heads, all layers together, as fit the cache.
              task.kv = {cache + size_t(head % heads) * kPageCluster * 2 * half_page, 2 * half_page, heads * kPageCluster * 2 * half_page};
              task.scratch = scratch.data() + (16 - reinterpret_cast<uintptr_t>(scratch.data()) / 4 % 16) % 16;  // a line of the cache
              kernels->attention(task);
            }
          });
        for (auto& thread : pool) thread.join();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const double after = decode ? read_rate(cache, threads) : product_rate(threads, &method);
        const double amount = decode ? double(used) * pages * 2 * half_page * 2 : 4.0 * used * work.rows * width * work.context;
        const double limit = (before + after) / 2;
        rates.push_back(amount / seconds);
        fractions.push_back(amount / seconds / limit);
        limits.push_back(limit);
        before = after;
      }
      const double rate = median(rates) / 1e9, limit = median(limits) / 1e9, fraction = median(fractions);
      const char* const unit = decode ? "GB/s" : "GOP/s";
      if (options.json)
        std::printf(
            "{\"kernel\": \"attention\", \"variant\": \"%s\", \"threads\": %d, \"phase\": \"%s\", \"group\": %d, \"head_dim\": %d, "
            "\"rows\": %d, \"context\": %d, \"rate\": %.3f, \"ceiling\": %.3f, \"unit\": \"%s\", \"ceiling_method\": \"%s\", "
            "\"fraction\": %.4f}\n",
            kernels->name, threads, work.phase, shape.group, shape.head_dim, work.rows, work.context, rate, limit, unit, method, fraction);
      else
        std::printf("G=%d d=%-3d %-6s %2d rows, context %5d: %7.1f of %7.1f %-5s (%s) = %.2f\n", shape.group, shape.head_dim, work.phase,
                    work.rows, work.context, rate, limit, unit, method, fraction);
      std::fflush(stdout);
    }
  qb_ceiling_buffer_free(cache, kCache);
  return 0;
}
