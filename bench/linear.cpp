// How near the products with quantised weights come to the machine's limits: reading weights from memory at few rows, integer products at
// many. Usage: bench_linear [variant [threads [kind ...]]]; built with -DQWENBOX_CPP_TESTS=ON. Ceilings are measured in the same minute.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ceiling.h"
#include "kernels.h"

using namespace qwenbox;

namespace {

struct KindName {
  Kind kind;
  const char* name;
  int scales[2];
};  // where fp16 scales stand in a raw block, -1: nowhere
const KindName kKinds[] = {{Kind::int4, "int4", {0, -1}}, {Kind::int8, "int8", {0, -1}}, {Kind::q4_0, "q4_0", {0, -1}},
                           {Kind::q4_1, "q4_1", {0, 2}},  {Kind::q5_0, "q5_0", {0, -1}}, {Kind::q8_0, "q8_0", {0, -1}},
                           {Kind::q4_k, "q4_k", {0, 2}},  {Kind::q5_k, "q5_k", {0, 2}},  {Kind::q6_k, "q6_k", {208, -1}}};
constexpr int kInputs = 4096;
constexpr uint64_t kStream = 512u << 20;

double seconds_of(int threads, int panels, const std::function<void(int, int, int)>& run) {
  auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(run, t, int(int64_t(panels) * t / threads), int(int64_t(panels) * (t + 1) / threads));
  for (auto& thread : pool) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels* kernels = argc > 1 ? find_kernels(argv[1]) : *available_kernels();
  const int threads = argc > 2 ? std::atoi(argv[2]) : int(std::thread::hardware_concurrency());
  if (!kernels || threads < 1) return std::puts("unknown variant, or no threads"), 2;
  const char* method = nullptr;
  for (int i = 0; (method = qb_ceiling_method(0, i)); ++i)
    if (std::strncmp(method, "amx", 3) != 0) break;
  std::printf("%s, %d threads, %d inputs; ceilings: memory read, %s from registers\n", kernels->name, threads, kInputs,
              method ? method : "none");

  std::mt19937 random_bits(1);
  auto* arena = static_cast<uint8_t*>(qb_ceiling_buffer(kStream));
  if (!arena) return std::puts("not enough memory"), 1;
  for (const KindName& kind : kKinds) {
    if (argc > 3 && std::none_of(argv + 3, argv + argc, [&](const char* name) { return std::strcmp(name, kind.name) == 0; })) continue;
    const size_t row_bytes = raw_row_bytes(kind.kind, kInputs);
    const size_t block = row_bytes / (kInputs / (kind.name[0] == 'i' ? 128 : std::strchr(kind.name, 'k') ? 256 : 32));
    std::vector<uint8_t> raw(kPanel * row_bytes);
    for (auto& byte : raw) byte = uint8_t(random_bits());
    for (size_t b = 0; b < raw.size(); b += block)
      for (int at : kind.scales)
        if (at >= 0) raw[b + at + 1] = 0x20 | raw[b + at + 1] % 8;
    const WeightLayout one = weight_layout(kind.kind, kPanel, kInputs);
    const int panels = int(kStream / one.panel_bytes);
    pack_panels(kind.kind, kPanel, kInputs, raw.data(), 0, 1, arena);
    for (int p = 1; p < panels; ++p) std::memcpy(arena + p * one.panel_bytes, arena, one.panel_bytes);
    const Weight weight{kind.kind, panels * kPanel, kInputs, panels, one.groups, arena, one.panel_bytes};

    for (int rows : {1, 4, 16, 512}) {
      const int used = rows < 512 ? panels : 64;
      std::vector<float> x(size_t(rows) * kInputs), out(size_t(rows) * used * kPanel);
      for (auto& v : x) v = float(int(random_bits() % 2001) - 1000);
      const size_t padded = size_t(rows + 15) / 16 * 16 * one.groups;
      std::vector<RowGroup> members(padded);
      std::unique_ptr<int8_t, decltype(&std::free)> codes(static_cast<int8_t*>(std::aligned_alloc(64, padded * kGroup)), std::free);
      Activations a{rows, kInputs, one.groups, codes.get(), members.data()};
      kernels->quantize_rows(x.data(), kInputs, 0, rows, a);
      std::vector<std::vector<uint8_t>> scratch(threads, std::vector<uint8_t>(kernels->linear_scratch(rows)));
      double best = 1e9, read = 0, rate = 0;
      for (int pass = 0; pass < 3; ++pass) {
        if (rows < 512)
          read = std::max(read, qb_ceiling_read(arena, kStream, threads, 1, 4096, 1));
        else if (method)
          rate = std::max(rate, qb_ceiling_rate(method, 0, 0, threads, 0.1));
        best = std::min(best, seconds_of(threads, used, [&](int t, int begin, int end) {
                          kernels->linear(weight, a, 0, rows, begin, end, nullptr, out.data(), size_t(used) * kPanel, scratch[t].data());
                        }));
      }
      const double bytes = double(used) * one.panel_bytes / best, operations = 2.0 * rows * kInputs * used * kPanel / best;
      if (rows < 512)
        std::printf("%-5s %3d rows %7.2f GB/s of %6.2f = %.2f  (%7.1f GOP/s)\n", kind.name, rows, bytes / 1e9, read / 1e9, bytes / read,
                    operations / 1e9);
      else
        std::printf("%-5s %3d rows %7.1f GOP/s of %7.1f = %.2f\n", kind.name, rows, operations / 1e9, rate / 1e9,
                    rate > 0 ? operations / rate : 0.0);
      std::fflush(stdout);
    }
  }
  qb_ceiling_buffer_free(arena, kStream);
  return 0;
}
