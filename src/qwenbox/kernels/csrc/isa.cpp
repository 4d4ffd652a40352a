// Which variants this processor can run and the operating system keeps the registers of. Compiled with baseline flags only.
#include <cstring>

#include "kernels.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qwenbox {
namespace {

#if defined(__x86_64__)
constexpr const char* kNoInstructions = "the processor does not have its instructions";

// Why a variant cannot run; nullptr where it can.
struct Processor {
  const char *avx2 = kNoInstructions, *avxvnni = kNoInstructions, *avx512vnni = kNoInstructions, *amx = kNoInstructions;

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
    if ((b & (bmi1 | avx2_bit | bmi2)) != (bmi1 | avx2_bit | bmi2)) return;
    avx2 = nullptr;
    constexpr unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, vnni = 1u << 11;
    if ((b & (f | dq | bw | vl)) == (f | dq | bw | vl) && (c & vnni) != 0)
      avx512vnni = (saved & zmm) == zmm ? nullptr : "the system does not keep the registers of AVX-512";
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    if ((d & (bf16 | tile | int8)) == (bf16 | tile | int8)) amx = avx512vnni ? avx512vnni : permission(saved);
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0) avxvnni = nullptr;
  }

  // Linux saves tiles only for a process that asked for them, once: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). It refuses where a
  // signal stack of some thread has no room for them.
  static const char* permission(unsigned saved) {
    constexpr unsigned tiles = 3u << 17;
    if ((saved & tiles) != tiles) return "the system does not keep the tiles of AMX";
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? nullptr : "the system refuses this process the tiles of AMX";
  }
};
#endif

#if defined(__x86_64__)
#ifdef QWENBOX_EMULATE_AMX  // tests/cpp
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

const Processor& processor() {
  static const Processor found;
  return found;
}
#endif

struct Available {
  const Kernels* list[6] = {};

  Available() {
    int count = 0;
#if defined(__x86_64__)
    const Processor& found = processor();
    if (has_amx() || (kEmulated && !found.avx512vnni)) list[count++] = &kernels_amx();
    if (!found.avx512vnni) list[count++] = &kernels_avx512vnni();
    if (!found.avxvnni) list[count++] = &kernels_avxvnni();
    if (!found.avx2) list[count++] = &kernels_avx2();
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

const char* missing_kernels(const char* name) {
  if (find_kernels(name)) return nullptr;
#if defined(__x86_64__)
  const Processor& found = processor();
  const struct {
    const char *name, *reason;
  } variants[] = {{"amx", found.amx}, {"avx512vnni", found.avx512vnni}, {"avxvnni", found.avxvnni}, {"avx2", found.avx2}};
  for (const auto& variant : variants)
    if (std::strcmp(variant.name, name) == 0) return variant.reason;
#endif
  return "this build has no such variant";
}

bool has_amx() {
#if defined(__x86_64__)
  return !kEmulated && !processor().amx;
#else
  return false;
#endif
}

}  // namespace qwenbox
