#define QWENBOX_VECTORS "vec_avx2.h"
#include "variant_impl.h"

namespace qwenbox {

const Kernels& kernels_avxvnni() {
  static constexpr Kernels kernels = make_kernels("avxvnni");
  return kernels;
}

}  // namespace qwenbox
