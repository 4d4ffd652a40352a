#define QWENBOX_VECTORS "vec_avx512.h"
#include "variant_impl.h"
// The vectors come first.
#include "linear_int4.h"

namespace qwenbox {

const Kernels& kernels_avx512vnni() {
  static const Kernels kernels = [] {
    Kernels all = make_kernels("avx512vnni");
    all.quantize_rows = quantize_rows_raised;
    all.linear = linear_raised;
    all.linear_scratch = linear_raised_scratch;
    all.raised = true;
    return all;
  }();
  return kernels;
}

}  // namespace qwenbox
