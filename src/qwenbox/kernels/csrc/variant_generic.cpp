#define QWENBOX_VECTORS "vec_generic.h"
#include "variant_impl.h"

namespace qwenbox {

const Kernels& kernels_generic() {
  static constexpr Kernels kernels = make_kernels("generic");
  return kernels;
}

}  // namespace qwenbox
