#define QWENBOX_VECTORS "vec_avx512.h"
#include "variant_impl.h"

namespace qwenbox {

const Kernels& kernels_avx512vnni() {
  static constexpr Kernels kernels = make_kernels("avx512vnni");
  return kernels;
}

}  // namespace qwenbox
