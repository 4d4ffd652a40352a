#define QWENBOX_VECTORS "vec_avx512.h"
#include "variant_impl.h"
// clang-format off: over the vectors
#include "linear_amx.h"
#include "dense_amx.h"
// clang-format on

namespace qwenbox {
namespace {

constexpr Kernels make_amx_kernels() {
  Kernels kernels = make_kernels("amx");
  kernels.linear = amx::linear;
  kernels.linear_scratch = amx::linear_scratch;
  kernels.linear_dense = amx::linear_dense;
  kernels.panels = amx::kPanels;
  return kernels;
}

}  // namespace

const Kernels& kernels_amx() {
  static constexpr Kernels kernels = make_amx_kernels();
  return kernels;
}

}  // namespace qwenbox
