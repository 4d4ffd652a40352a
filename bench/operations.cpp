// How near the operations over rows come to a copy of as many bytes: rounding of activations, norm, activation, exponentials of logits.
// Usage: bench_operations [--json] [variant=NAME] [threads=N]; built with -DQWENBOX_CPP_TESTS=ON. One row is in the first cache and belongs
// to one thread, 512 rows are in the last one. The copy is measured before and after each pass, over buffers of the same size.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "ceiling.h"
#include "kernels.h"
#include "measure.h"

using namespace qwenbox;

namespace {

constexpr int kWidth = 8960, kLogits = 151936, kPasses = 7;
constexpr double kSeconds = 0.01;  // of a pass, at least
constexpr size_t kArena = 96u << 20;

struct Operation {
  const char* name;
  int rows, width;
  double bytes;                       // read and written, all rows
  std::function<void(int, int)> run;  // rows [begin, end)
};

// Calls a second, each of all rows, shared by the threads.
double rate(int threads, int rows, const std::function<void(int, int)>& run) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  std::vector<double> rates(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      const int first = rows * t / threads, last = rows * (t + 1) / threads;
      double seconds;
      int calls = 0;
      do {
        run(first, last), ++calls;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      } while (seconds < kSeconds);
      rates[t] = calls / seconds;
    });
  double sum = 0;
  for (auto& thread : pool) thread.join();
  for (double value : rates) sum += value / threads;
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options, no_others)) return 2;
  const Kernels* const kernels = options.kernels;
  const int threads = options.threads;
  auto* const arena = static_cast<char*>(qb_ceiling_buffer(kArena));
  if (!arena) return std::puts("not enough memory"), 1;
  std::mt19937 random_bits(1);
  auto* const x = reinterpret_cast<float*>(arena);
  for (size_t i = 0; i < size_t(512) * kWidth; ++i) x[i] = float(int(random_bits() % 2001) - 1000) / 100;
  float* const out = x + size_t(512) * kWidth;
  const int groups = kWidth / kGroup;
  Activations codes{512, kWidth, groups, reinterpret_cast<int8_t*>(out), reinterpret_cast<RowGroup*>(out + size_t(512) * kWidth / 4)};

  std::vector<Operation> operations;
  for (int rows : {1, 512}) {
    const double values = double(rows) * kWidth;
    operations.push_back({"quantize_rows", rows, kWidth, values * (4 + 1) + values / kGroup * sizeof(RowGroup),
                          [&, rows](int a, int b) { kernels->quantize_rows(x, kWidth, a, b, codes); }});
    operations.push_back({"rms_norm", rows, kWidth, values * 8, [&](int a, int b) {
                            for (int r = a; r < b; ++r)
                              kernels->rms_norm(x + size_t(r) * kWidth, x, kWidth, 1e-6f, out + size_t(r) * kWidth);
                          }});
    operations.push_back({"silu_mul", rows, kWidth / 2, values * 6, [&](int a, int b) {
                            for (int r = a; r < b; ++r) {
                              const float* row = x + size_t(r) * kWidth;
                              kernels->silu_mul(row, row + kWidth / 2, kWidth / 2, out + size_t(r) * kWidth / 2);
                            }
                          }});
  }
  operations.push_back({"exp_sum", 1, kLogits, kLogits * 4.0, [&](int a, int b) {
                          double sum;
                          if (a < b) kernels->exp_sum(x, kLogits, nullptr, &sum);
                        }});

  for (const Operation& one : operations) {
    const int used = one.rows == 1 ? 1 : threads;
    const size_t half = size_t(one.bytes / 2 / one.rows) / 4;  // floats of a row that a copy reads, and writes
    const auto copy = [&](int a, int b) { std::memcpy(out + a * half, x + a * half, size_t(b - a) * half * 4); };
    std::vector<double> rates, limits, fractions;
    for (int pass = 0; pass < kPasses; ++pass) {
      const double before = rate(used, one.rows, copy);
      const double ours = rate(used, one.rows, one.run);
      const double limit = (before + rate(used, one.rows, copy)) / 2;
      rates.push_back(ours * one.bytes / 1e9), limits.push_back(limit * one.bytes / 1e9), fractions.push_back(ours / limit);
    }
    if (options.json)
      std::printf(
          "{\"kernel\": \"%s\", \"variant\": \"%s\", \"threads\": %d, \"rows\": %d, \"width\": %d, \"rate\": %.3f, \"ceiling\": %.3f, "
          "\"unit\": \"GB/s\", \"ceiling_method\": \"copy\", \"fraction\": %.4f}\n",
          one.name, kernels->name, used, one.rows, one.width, median(rates), median(limits), median(fractions));
    else
      std::printf("%-13s %3d rows of %6d, %d threads: %6.1f of %6.1f GB/s = %.2f\n", one.name, one.rows, one.width, used, median(rates),
                  median(limits), median(fractions));
  }
  qb_ceiling_buffer_free(arena, kArena);
  return 0;
}
