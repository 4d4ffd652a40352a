// Which variants this processor can run and the operating system keeps the registers of. Compiled with baseline flags only.
#include <cstring>

#include "kernels.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace qwenbox {
namespace {

#if defined(__x86_64__)
struct Processor {
  bool avx2 = false, avxvnni = false, avx512vnni = false;

  Processor() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    constexpr unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return;
    unsigned saved, unused;
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    constexpr unsigned ymm = 0x06, zmm = 0xE6;  // SSE and AVX state; with opmask and both halves of the zmm registers
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned leaves = a;
    constexpr unsigned bmi1 = 1u << 3, avx2_bit = 1u << 5, bmi2 = 1u << 8;
    avx2 = (b & (bmi1 | avx2_bit | bmi2)) == (bmi1 | avx2_bit | bmi2);
    constexpr unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, vnni = 1u << 11;
    avx512vnni = avx2 && (saved & zmm) == zmm && (b & (f | dq | bw | vl)) == (f | dq | bw | vl) && (c & vnni) != 0;
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avxvnni = avx2 && (a & (1u << 4)) != 0;
  }
};
#endif

struct Available {
  const Kernels* list[5] = {};

  Available() {
    int count = 0;
#if defined(__x86_64__)
    const Processor processor;
    if (processor.avx512vnni) list[count++] = &kernels_avx512vnni();
    if (processor.avxvnni) list[count++] = &kernels_avxvnni();
    if (processor.avx2) list[count++] = &kernels_avx2();
#endif
    list[count] = &kernels_generic();
  }
};

}  // namespace

const Kernels* const* available_kernels() {
  static const Available available;
  return available.list;
}

const Kernels* find_kernels(const char* name) {
  for (auto kernels = available_kernels(); *kernels; ++kernels)
    if (std::strcmp((*kernels)->name, name) == 0) return *kernels;
  return nullptr;
}

}  // namespace qwenbox
