// The table of one variant. Each variant_*.cpp names its vec_*.h in QWENBOX_VECTORS and includes this.
#pragma once
// clang-format off: the vectors come first
#include QWENBOX_VECTORS
#include "linear_impl.h"
#include "ops_impl.h"
#include "round_impl.h"
#include "sketch_impl.h"
// clang-format on

namespace qwenbox {
namespace {

constexpr Kernels make_kernels(const char* name) {
  return {name,
          quantize_rows,
          linear,
          linear_scratch,
          linear_dense,
          unpack_row,
          rms_norm,
          rope,
          silu_mul,
          add,
          axpy,
          fused,
          sigmoid,
          softmax,
          store_kv,
          attention,
          attention_blocks,
          attention_merge,
          attention_scratch,
          attention_partial,
          exp_sum,
          sketch_group,
          round_group};
}

}  // namespace
}  // namespace qwenbox
