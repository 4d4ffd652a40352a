// Which variants this machine runs. Compiled with baseline flags only.
#include <cstring>

#include "kernels.h"
#if defined(__x86_64__)
#include "processor.h"
#endif

namespace qwenbox {
namespace {

struct Available {
  const Kernels* list[6] = {};

  Available() {
    int count = 0;
#if defined(__x86_64__)
    const Processor& found = processor();
    if (!found.amx) list[count++] = &kernels_amx();
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

}  // namespace qwenbox
