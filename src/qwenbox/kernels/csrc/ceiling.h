// What this machine can do at most, measured: DRAM read bandwidth, and multiply-add rates of the best matrix instructions.
// The C functions are the ABI that kernels/ceiling.py calls; the namespace is shared by the ceiling_*.cpp units only.
#pragma once
#include <cstdint>

#define QB_EXPORT __attribute__((visibility("default")))

extern "C" {
// Anonymous memory asked to sit on 2 MiB pages, written once so that every page exists. nullptr if there is not enough.
QB_EXPORT void* qb_ceiling_buffer(uint64_t bytes);
QB_EXPORT void qb_ceiling_buffer_free(void* buffer, uint64_t bytes);
// Bytes per second of one pass over the buffer. Each thread reads its share in `streams` interleaved runs.
// prefetch: 0 none, 1 to all caches, 2 non-temporal; `distance` is how many bytes ahead.
QB_EXPORT double qb_ceiling_read(const void* buffer, uint64_t bytes, int32_t threads, int32_t prefetch, int32_t distance, int32_t streams);
// Name of the index-th method that this processor and kernel can run for the kind of product (0: int8, 1: bf16), fastest first; nullptr
// past the end.
QB_EXPORT const char* qb_ceiling_method(int32_t kind, int32_t index);
// Operations per second (a multiply-add is two) with operands in registers (feed 0) or coming from L1 (feed 1): the sum over threads
// of each thread's median slice. 0 if the method is unknown or unavailable.
QB_EXPORT double qb_ceiling_rate(const char* method, int32_t kind, int32_t feed, int32_t threads, double seconds);
}

namespace qwenbox::ceiling {

// Working set of one thread, page aligned; small enough for a 32 KiB L1 except on AMX machines, which have 48 KiB.
struct Operands {
  alignas(4096) int8_t x[16384];
  alignas(4096) int8_t w[16384];
  alignas(4096) int32_t out[2048];
};

struct Method {
  const char* name;
  int kind;
  bool (*available)();
  void (*enter)();  // once a thread, before the first run; may be null
  void (*leave)();
  // Runs `blocks` blocks of fixed size and returns the operations of one block.
  double (*registers)(Operands&, long blocks);
  double (*fed)(Operands&, long blocks);
};

#if defined(__x86_64__)
extern const Method amx_int8, amx_bf16, avx512_int8, avx512_bf16, avx512_float, avxvnni_int8, avx2_int8, avx2_float;
#endif

}  // namespace qwenbox::ceiling
