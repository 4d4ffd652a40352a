// The largest of many outputs of an int8 matrix, without reading most of it. A sketch of the matrix, int4 with zeros, is read whole; beside
// it stands what an output can differ by at most. Panels that may still hold the largest are multiplied exactly, so that it has the bits of
// the whole product.
//
// The bound. Let w and v be a row of the matrix and of the sketch, e = w - v, x the rounded input, u = 2^-24, G the number of groups of 128
// inputs. In each group x = y + z, z being x cut off at some limit, so |e x| <= max |e| sum |y| + |e| |z| (Hoelder; Cauchy and Schwarz):
// single large inputs, of which these models have many, then cost little. The contract rounds the product with the scale and the fma:
// (G + 2) u sum |w| |x| at most, and as much for v, |v| <= |w| + |e|. As |x| <= sum |y| + |z|, that is added to both stored numbers of a
// group, max |e| and |e|, with room for their own rounding; they are rounded up to fp16.
//
// The threshold. The row that is the largest of the sketch, multiplied exactly, costs no bound of its own: the others need one bound, not
// two.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace qwenbox {

class Sketch {
 public:
  // Whether the matrix is of a kind and large enough.
  static bool pays(const Weight& exact) { return exact.kind == Kind::int8 && exact.n >= 16384; }
  // Bytes of the sketch of a matrix.
  static size_t bytes(const Weight& exact);
  // Into `memory`, 64-byte aligned.
  Sketch(const Kernels& kernels, const Weight& exact, uint8_t* memory, Pool& pool);

  // Bytes that were not read so far because of the sketch, less those of the sketch itself.
  int64_t spared_bytes() const { return spared_bytes_; }

  // From the one row of `a`, outputs of panels that may hold the largest of the first `limit`, minus infinity everywhere else; false, and
  // nothing that counts in `out`, where too many panels are left or were left lately.
  bool largest(const Kernels& kernels, Pool& pool, const Activations& a, int limit, float* out, uint8_t* const* scratch);

 private:
  void look(const Kernels& kernels, const Activations& a, int limit, int panel, float* out, uint8_t* scratch);

  const Weight exact_;
  Weight codes_, errors_;                // alternate: a panel of one, a panel of the other; errors [groups][2]
  std::vector<float> norms_;             // of the input, sum |y| and |z|, [groups][2]
  std::vector<float> middles_, bounds_;  // of each panel: the sketch's largest output, what none is above
  std::vector<int> left_;                // panels
  int failures_ = 0, skip_ = 0;          // calls in a row that were not worth it; calls that are refused after that
  int64_t spared_bytes_ = 0;
};

}  // namespace qwenbox
