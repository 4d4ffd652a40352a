// How near int4 products come to what 512-bit VNNI can do at best. 512 rows: the irreducible loads, products and stores of one tile, 6 rows
// by 64 channels by 128 inputs, with everything in L1, in turns with the product of 512 rows itself, from memory. 8 and 16 rows: unpacking
// the codes of 64 channels and 128 inputs, then the tiles over them, in L1, in turns with the product of a panel in L2. Usage: bench_floor
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
// Both ports that multiply take what else is done to the registers. A sum can start from the bits of 1.5 * 2^23 and what the zero points
// add (linear_int4.h), so that an fma with the scale and one with the accumulator are left; where weights are used by few rows only, zero
// points are cheaper a sum. Unpacking 64 bytes takes a shift and two masks.
constexpr double bound_of(int rows) {
  const double products = double(rows) * kBlocks * kQuads, scaled = double(rows) * kBlocks * (rows == kRows ? 2 : 3);
  return products / (products + scaled + (rows == kRows ? 0 : 3 * kBlocks * kQuads / 2));
}

struct alignas(4096) Operands {
  uint8_t packed[kQuads / 2][kPanel][4], weights[kQuads][kPanel][4];
  int8_t inputs[2 * 1024];
  RowGroup members[16];
  float scales[kPanel], bases[kPanel], acc[16][kPanel];
  int32_t starts[kPanel], minus_zeros[kPanel];
};

// Products in assembly: GCC 12 copies the accumulators of the intrinsics.
template <int rows, bool zeros>
__attribute__((noinline)) void tile(Operands& o, int first) {
  __m512i sums[rows][kBlocks];
#pragma GCC unroll 6
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) asm volatile("vmovdqa64 %1, %0" : "=v"(sums[m][b]) : "m"(o.starts[16 * b]));
  const int8_t* const inputs = o.inputs + 64 * first;
#pragma GCC unroll 32
  for (int q = 0; q < kQuads; ++q) {
    __m512i w[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) asm volatile("vmovdqa64 %1, %0" : "=v"(w[b]) : "m"(o.weights[q][16 * b]));
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
      __m512i a;
      asm volatile("vpbroadcastd %1, %0" : "=v"(a) : "m"(inputs[q / 16 * kCodesHalf + 64 * m + q % 16 * 4]));
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[m][b]) : "v"(w[b]), "v"(a));
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    const __m512 scale = _mm512_load_ps(o.scales + 16 * b), base = _mm512_load_ps(o.bases + 16 * b);
    const __m512i minus_zero = _mm512_load_si512(o.minus_zeros + 16 * b);
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
      const RowGroup& member = o.members[first + m];
      float* const acc = o.acc[first + m] + 16 * b;
      if (zeros) asm volatile("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sums[m][b]) : "v"(minus_zero), "m"(member.sums[28]));
      const __m512 value = _mm512_fmadd_ps(_mm512_castsi512_ps(sums[m][b]), scale, base);
      _mm512_store_ps(acc, _mm512_fmadd_ps(value, _mm512_set1_ps(member.scale), _mm512_load_ps(acc)));
    }
  }
}

void step(Operands& o, int rows) {
  const __m512i fifteen = _mm512_set1_epi8(15);
#pragma GCC unroll 16
  for (int r = 0; r < kQuads / 2; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      const __m512i both = _mm512_load_si512(o.packed[r][16 * b]);
      _mm512_store_si512(o.weights[r][16 * b], _mm512_and_si512(both, fifteen));
      _mm512_store_si512(o.weights[r + kQuads / 2][16 * b], _mm512_and_si512(_mm512_srli_epi16(both, 4), fifteen));
    }
  if (rows == 8) {
    tile<4, true>(o, 0), tile<4, true>(o, 4);
  } else {
    tile<6, true>(o, 0), tile<5, true>(o, 6), tile<5, true>(o, 11);
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
  const size_t input_bytes = kMany * groups * (kGroup + sizeof(RowGroup)), raised_bytes = (kMany + 1) * groups * (kGroup + sizeof(float));
  const size_t scratch_bytes = (kernels->linear_scratch(kMany) + 63) / 64 * 64;
  const size_t bytes = weight_bytes + input_bytes + out_bytes + raised_bytes + size_t(options.threads) * scratch_bytes;
  uint8_t* const memory = static_cast<uint8_t*>(qb_ceiling_buffer(bytes));
  if (!memory) return std::puts("not enough memory"), 1;
  std::vector<uint8_t> raw(size_t(n) * raw_row_bytes(Kind::int4, k), 0x3C);  // fp16 1.06
  pack_panels(Kind::int4, n, k, raw.data(), 0, layout.panels, memory);
  const Weight weight{Kind::int4, n, k, layout.panels, layout.groups, memory, layout.panel_bytes};
  RowGroup* const members = reinterpret_cast<RowGroup*>(memory + weight_bytes);
  int8_t* const codes = reinterpret_cast<int8_t*>(members + kMany * groups);
  float* const out = reinterpret_cast<float*>(codes + kMany * groups * kGroup);
  uint8_t* const raised = reinterpret_cast<uint8_t*>(out) + out_bytes;
  float* const scales = reinterpret_cast<float*>(raised + (kMany + 1) * groups * kGroup);
  Activations activations{kMany, k, layout.groups, codes, members, raised, scales};
  std::vector<float> x(size_t(kMany) * k);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i % 251) - 125.0f;
  kernels->quantize_rows(x.data(), size_t(k), 0, kMany, activations);

  const int rows_of[] = {kMany, 16, 8};
  std::vector<std::vector<double>> floors[3], ours[3];
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) floors[i].resize(size_t(options.threads)), ours[i].resize(size_t(options.threads));
  for (int t = 0; t < options.threads; ++t)
    threads.emplace_back([&, t] {
      const auto operands = std::make_unique<Operands>();
      std::memset(operands.get(), 0, sizeof(Operands));
      uint8_t* const scratch = memory + bytes - size_t(t + 1) * scratch_bytes;
      for (int turn = 0; turn < kTurns; ++turn) {
        const int panel = (turn * options.threads + t) % weight.panels;
        for (int i = 0; i < 3; ++i) {
          const int rows = rows_of[i], times = i ? 20 : 1, runs = i ? kTiles / rows : kTiles;
          floors[i][size_t(t)].push_back(rate(2.0 * (i ? rows : kRows) * kPanel * kGroup * runs, [&] {
            for (int run = 0; run < runs; ++run) {
              if (i)
                step(*operands, rows);
              else
                tile<kRows, false>(*operands, 0);
            }
          }));
          ours[i][size_t(t)].push_back(rate(2.0 * rows * kPanel * k * times, [&] {
            for (int run = 0; run < times; ++run)
              kernels->linear(weight, activations, 0, rows, panel, panel + 1, nullptr, out, size_t(n), scratch);
          }));
        }
      }
    });
  for (auto& thread : threads) thread.join();
  const double registers = qb_ceiling_rate("avx512vnni", 0, 0, options.threads, 0.2) / options.threads;
  const double fed = qb_ceiling_rate("avx512vnni", 0, 1, options.threads, 0.2) / options.threads;
  std::printf("%d x %d, %d threads, GOP/s a thread; products from registers %.1f, fed from L1 %.1f\n", n, k, options.threads,
              registers / 1e9, fed / 1e9);
  for (int i = 0; i < 3; ++i)
    for (int t = 0; t < options.threads; ++t) {
      const double bound = registers * bound_of(i ? rows_of[i] : kRows), floor = median(floors[i][size_t(t)]),
                   mine = median(ours[i][size_t(t)]);
      std::printf("%3d rows, thread %d: port bound %5.1f, floor %5.1f = %.2f of it, product %5.1f = %.2f of the floor, %.2f of L1-fed\n",
                  rows_of[i], t, bound / 1e9, floor / 1e9, floor / bound, mine / 1e9, mine / floor, mine / fed);
    }
  qb_ceiling_buffer_free(memory, bytes);
  return 0;
}
