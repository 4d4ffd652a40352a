// How near int4 products of many rows come to what 512-bit VNNI can do at best: the irreducible loads, products and stores of one tile, 6
// rows by 64 channels by 128 inputs, with everything in L1, in turns with the product of 512 rows itself, from memory. Usage: bench_floor
// [threads=N] [shape=NxK]. Prints GOP/s a thread and fractions of the port bound; medians of the turns.
#include <immintrin.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>

#include "ceiling.h"
#include "measure.h"

using namespace qwenbox;

namespace {

constexpr int kRows = 6, kBlocks = 4, kQuads = 32, kTurns = 300, kTiles = 2000, kMany = 512;
constexpr int kProducts = kRows * kBlocks * kQuads;
// Both ports that multiply take what is done for each sum after its products: the zero point, the conversion, the scale, the accumulation.
constexpr double kPortBound = double(kProducts) / (kProducts + 4 * kRows * kBlocks);

struct alignas(4096) Operands {
  uint8_t weights[kQuads][kPanel][4];
  int8_t inputs[2 * 1024];
  RowGroup members[kRows];
  float scales[kPanel], acc[kRows][kPanel];
  int32_t minus_zeros[kPanel];
};

// Products in assembly: GCC 12 copies the accumulators of the intrinsics.
__attribute__((noinline)) void tile(Operands& o) {
  __m512i sums[kRows][kBlocks];
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) asm volatile("vpxord %0, %0, %0" : "=v"(sums[m][b]));
#pragma GCC unroll 32
  for (int q = 0; q < kQuads; ++q) {
    __m512i w[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) asm volatile("vmovdqa64 %1, %0" : "=v"(w[b]) : "m"(o.weights[q][16 * b]));
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      __m512i a;
      asm volatile("vpbroadcastd %1, %0" : "=v"(a) : "m"(o.inputs[q / 16 * kCodesHalf + 64 * m + q % 16 * 4]));
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[m][b]) : "v"(w[b]), "v"(a));
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      float* const acc = o.acc[m] + 16 * b;
      asm volatile("vpdpwssd %2%{1to16%}, %1, %0"
                   : "+v"(sums[m][b])
                   : "v"(_mm512_load_si512(o.minus_zeros + 16 * b)), "m"(o.members[m].sums[28]));
      const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][b]), _mm512_load_ps(o.scales + 16 * b));
      _mm512_store_ps(acc, _mm512_fmadd_ps(value, _mm512_set1_ps(o.members[m].scale), _mm512_load_ps(acc)));
    }
}

double rate(double operations, const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return operations / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  int n = 12288, k = 4096;
  const auto take = [&](const std::string& name, const std::string& value) {
    return name == "shape" && std::sscanf(value.c_str(), "%dx%d", &n, &k) == 2;
  };
  if (!parse(argc, argv, options, take)) return 2;
  const Kernels* const kernels = find_kernels("avx512vnni");
  if (!kernels) return std::puts("this processor has no 512-bit VNNI"), 2;
  if (n < 1 || k < 1 || k % kGroup) return std::puts("numbers are positive, and inputs a multiple of 128"), 2;

  const WeightLayout layout = weight_layout(Kind::int4, n, k);
  const size_t weight_bytes = layout.panel_bytes * size_t(layout.panels), groups = size_t(layout.groups), out_bytes = size_t(kMany) * n * 4;
  uint8_t* const memory = static_cast<uint8_t*>(qb_ceiling_buffer(weight_bytes + kMany * groups * (kGroup + sizeof(RowGroup)) + out_bytes));
  if (!memory) return std::puts("not enough memory"), 1;
  std::vector<uint8_t> raw(size_t(n) * raw_row_bytes(Kind::int4, k), 0x3C);  // fp16 1.06
  pack_panels(Kind::int4, n, k, raw.data(), 0, layout.panels, memory);
  const Weight weight{Kind::int4, n, k, layout.panels, layout.groups, memory, layout.panel_bytes};
  RowGroup* const members = reinterpret_cast<RowGroup*>(memory + weight_bytes);
  int8_t* const codes = reinterpret_cast<int8_t*>(members + kMany * groups);
  float* const out = reinterpret_cast<float*>(codes + kMany * groups * kGroup);
  Activations activations{kMany, k, layout.groups, codes, members};
  std::vector<float> x(size_t(kMany) * k);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i % 251) - 125.0f;
  kernels->quantize_rows(x.data(), size_t(k), 0, kMany, activations);

  std::vector<std::vector<double>> floors(static_cast<size_t>(options.threads)), ours = floors;
  std::vector<std::thread> threads;
  for (int t = 0; t < options.threads; ++t)
    threads.emplace_back([&, t] {
      const auto operands = std::make_unique<Operands>();
      std::memset(operands.get(), 0, sizeof(Operands));
      std::vector<uint8_t> scratch(kernels->linear_scratch(kMany));
      for (int turn = 0; turn < kTurns; ++turn) {
        floors[size_t(t)].push_back(rate(8.0 * 16 * kProducts * kTiles, [&] {
          for (int i = 0; i < kTiles; ++i) tile(*operands);
        }));
        const int panel = (turn * options.threads + t) % weight.panels;
        ours[size_t(t)].push_back(rate(2.0 * kMany * kPanel * k, [&] {
          kernels->linear(weight, activations, 0, kMany, panel, panel + 1, nullptr, out, size_t(n), scratch.data());
        }));
      }
    });
  for (auto& thread : threads) thread.join();
  const double registers = qb_ceiling_rate("avx512vnni", 0, 0, options.threads, 0.2) / options.threads;
  const double fed = qb_ceiling_rate("avx512vnni", 0, 1, options.threads, 0.2) / options.threads, bound = registers * kPortBound;
  std::printf("512 x %d x %d, %d threads, GOP/s a thread\n", n, k, options.threads);
  std::printf("products from registers %7.1f, fed from L1 %7.1f, port bound of a tile %7.1f\n", registers / 1e9, fed / 1e9, bound / 1e9);
  for (int t = 0; t < options.threads; ++t) {
    const double floor = median(floors[size_t(t)]), mine = median(ours[size_t(t)]);
    std::printf("thread %d: tile alone %7.1f = %.2f of the bound; product from memory %7.1f = %.2f of the tile, %.2f of L1-fed\n", t,
                floor / 1e9, floor / bound, mine / 1e9, mine / floor, mine / fed);
  }
  qb_ceiling_buffer_free(memory, weight_bytes + kMany * groups * (kGroup + sizeof(RowGroup)) + out_bytes);
  return 0;
}
