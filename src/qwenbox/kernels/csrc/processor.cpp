// Compiled with baseline flags only.
#include "processor.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace qwenbox {
namespace {

// Linux saves tiles only for a process that asked for them, once: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). It refuses where a
// signal stack of some thread has no room for them.
const char* permission(unsigned saved) {
  constexpr unsigned tiles = 3u << 17;
  if ((saved & tiles) != tiles) return "the system does not keep the tiles of AMX";
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? nullptr : "the system refuses this process the tiles of AMX";
}

Processor ask() {
  constexpr const char* none = "the processor does not have its instructions";
  Processor found{none, none, none, none};
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  constexpr unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
  if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return found;
  unsigned saved, unused;
  __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
  constexpr unsigned ymm = 0x06, zmm = 0xE6;  // SSE and AVX state; with opmask and both halves of the zmm registers
  if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned leaves = a;
  constexpr unsigned bmi1 = 1u << 3, avx2 = 1u << 5, bmi2 = 1u << 8;
  if ((b & (bmi1 | avx2 | bmi2)) != (bmi1 | avx2 | bmi2)) return found;
  found.avx2 = nullptr;
  constexpr unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, vnni = 1u << 11;
  if ((b & (f | dq | bw | vl)) == (f | dq | bw | vl) && (c & vnni) != 0)
    found.avx512vnni = (saved & zmm) == zmm ? nullptr : "the system does not keep the registers of AVX-512";
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
  if ((d & (bf16 | tile | int8)) == (bf16 | tile | int8)) found.amx = found.avx512vnni ? found.avx512vnni : permission(saved);
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0) found.avxvnni = nullptr;
  return found;
}

}  // namespace

const Processor& processor() {
  static const Processor found = ask();
  return found;
}

}  // namespace qwenbox
