#define QWENBOX_VECTORS "vec_avx512.h"
// clang-format off: the vectors come first
#include "variant_impl.h"
#include "linear_avx512.h"
// clang-format on

namespace qwenbox {
namespace {

constexpr Kernels with_own_linear() {
  Kernels kernels = make_kernels("avx512vnni");
  kernels.linear = vnni512::linear;
  kernels.linear_scratch = vnni512::linear_scratch;
  return kernels;
}

}  // namespace

const Kernels& kernels_avx512vnni() {
  static constexpr Kernels kernels = with_own_linear();
  return kernels;
}

}  // namespace qwenbox
