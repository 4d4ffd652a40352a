// From how many rows on tiles are quicker than vectors: measured, for the answer depends on the processor and on who shares it. Both ways
// give the same bits.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>

#include "kernels.h"

namespace qwenbox {

int tile_crossovers[kKinds];

namespace {

constexpr int kInputs = 1024, kLargest = 16;  // rows

struct FreeAligned {
  void operator()(uint8_t* p) const { operator delete[](p, std::align_val_t(64)); }
};
using Memory = std::unique_ptr<uint8_t[], FreeAligned>;

Memory zeros(size_t bytes) {
  Memory memory(new (std::align_val_t(64)) uint8_t[bytes]);
  std::memset(memory.get(), 0, bytes);
  return memory;
}

// Kinds that are multiplied alike share what is measured for one.
struct Class {
  Kind measured;
  std::initializer_list<Kind> members;
};
const Class kClasses[] = {{Kind::int4, {Kind::int4, Kind::int8, Kind::int4_64, Kind::uint8}},
                          {Kind::q5_0, {Kind::q4_0, Kind::q4_1, Kind::q5_0, Kind::q8_0, Kind::int4_32}},
                          {Kind::q4_k, {Kind::q4_k, Kind::q5_k}},
                          {Kind::q6_k, {Kind::q6_k}}};

// Seconds of one panel of zeros, the best of several, by tiles from `crossover` rows on.
double seconds(const Weight& weight, const Activations& a, int rows, int crossover, float* out, uint8_t* scratch) {
  using Clock = std::chrono::steady_clock;
  tile_crossovers[int(weight.kind)] = crossover;
  double best = 1;
  for (int i = 0; i < 12; ++i) {
    const auto begin = Clock::now();
    kernels_amx().linear(weight, a, 0, rows, 0, 1, nullptr, out, kPanel, scratch);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

int measured(Kind kind) {
  const WeightLayout layout = weight_layout(kind, kPanel, kInputs);
  const Memory panel = zeros(layout.panel_bytes), codes = zeros(size_t(kLargest) * kInputs);
  const Memory members = zeros(size_t(kLargest) * size_t(layout.groups) * sizeof(RowGroup)), out = zeros(kLargest * kPanel * sizeof(float));
  const Memory scratch = zeros(kernels_amx().linear_scratch(kLargest));
  const Weight weight{kind, kPanel, kInputs, 1, layout.groups, panel.get(), layout.panel_bytes};
  const Activations a{kLargest, kInputs, layout.groups, reinterpret_cast<int8_t*>(codes.get()), reinterpret_cast<RowGroup*>(members.get())};
  const auto took = [&](int rows, int crossover) {
    return seconds(weight, a, rows, crossover, reinterpret_cast<float*>(out.get()), scratch.get());
  };
  // Tiles take the same time for 1 to 16 rows.
  const double tiles = took(kLargest, 0);
  for (int rows : {1, 2, 3, 4, 5, 6, 8, 12})
    if (took(rows, kLargest + 1) > tiles) return rows;
  return kLargest;
}

}  // namespace

void measure_tile_crossovers() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const Class& c : kClasses) {
      const int rows = measured(c.measured);
      for (Kind kind : c.members) tile_crossovers[int(kind)] = rows;
    }
  });
}

}  // namespace qwenbox
