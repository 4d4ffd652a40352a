// A step of fixed work over the real pool of threads: what a front that shares the processors takes from it is seen, memory's moods are
// not.
#include <cstdint>

#include "pool.h"

namespace {

constexpr int64_t JOBS = 200;   // of a step, as a model of 28 layers has
constexpr int64_t PIECES = 64;  // of a job
constexpr int64_t GRAIN = 2;

// Integer work in registers; the result keeps the compiler from leaving it out.
uint64_t piece(int64_t rounds) {
  uint64_t x = 88172645463325252ull;
  for (int64_t i = 0; i < rounds; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
  }
  return x;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void* stub_open(int threads) { return new qwenbox::Pool(threads); }

// One step; `rounds` of work in each piece.
__attribute__((visibility("default"))) void stub_step(void* pool, int64_t rounds) {
  for (int64_t job = 0; job < JOBS; ++job)
    static_cast<qwenbox::Pool*>(pool)->run(PIECES, GRAIN, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        volatile uint64_t kept = piece(rounds);
        (void)kept;
      }
    });
}
}
