// What tiles do better than vectors; everything else is the avx512vnni variant's.
#include "kernels.h"
// clang-format off: the vectors come first
#include "vec_avx512.h"
#include "linear_amx.h"
#include "dense_amx.h"
// clang-format on

namespace qwenbox {

const Kernels& kernels_amx() {
  static const Kernels kernels = [] {
    Kernels all = kernels_avx512vnni();
    all.name = "amx";
    all.linear = amx::linear;
    all.linear_scratch = amx::linear_scratch;
    all.linear_dense = amx::linear_dense;
    all.raised = false;
    all.panels = amx::kPanels;
    return all;
  }();
  return kernels;
}

}  // namespace qwenbox
