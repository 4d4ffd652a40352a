#define QWENBOX_VECTORS "vec_avx2.h"
#include "variant_impl.h"

namespace qwenbox {

const Kernels& kernels_avx2() {
  static constexpr Kernels kernels = make_kernels("avx2");
  return kernels;
}

}  // namespace qwenbox
