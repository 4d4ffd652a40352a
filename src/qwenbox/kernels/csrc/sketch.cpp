#include "sketch.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "layout.h"

namespace qwenbox {
namespace {

constexpr int kMostPanels = 3;   // of so many one may have to be multiplied exactly, or the whole matrix is
constexpr int kMostSkipped = 6;  // 2^6 calls
constexpr int kLimitStep = 7;
constexpr float kUsualError = 0.15f;   // the largest of a group's errors over their norm
constexpr float kLargestNorm = 1e25f;  // of inputs: every product and sum is then finite
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Layout kExact = layout_of(Kind::int8), kSmall = layout_of(Kind::int4);

size_t codes_bytes(const Weight& exact) { return weight_layout(Kind::int4, exact.n, exact.k).panel_bytes; }

// What is above a limit in the inputs of a group is bound by the largest error, what is below by the errors' norm, for the best of some
// limits. False where the inputs are too large, or not numbers.
bool norms_of(const Activations& a, int g, float* norms) {
  int codes[kGroup];
  const int8_t* const from = a.codes + code_index(a.groups, 0, g);
  for (int i = 0; i < 64; ++i) codes[i] = std::abs(from[i]), codes[64 + i] = std::abs(from[kCodesHalf + i]);
  float best = kInfinity;
  for (int limit = 127; limit > 0; limit -= kLimitStep) {
    int above = 0, squares = 0;
    for (const int code : codes) {
      const int below = std::min(code, limit);
      above += code - below;
      squares += below * below;
    }
    const float norm = std::sqrt(float(squares)), bound = kUsualError * float(above) + norm;
    if (bound < best) best = bound, norms[0] = float(above), norms[1] = norm;
  }
  const float scale = a.members[member_index(a.groups, 0, g)].scale;
  // More than all that its own and the bound's sums lose to rounding, and than what is lost in denormal products.
  for (int i = 0; i < 2; ++i) norms[i] = norms[i] * scale * (1 + float(2 * a.groups + 8) * 0x1p-22f) + 1e-30f;
  return norms[0] + norms[1] < kLargestNorm;
}

// A weight of one panel.
Weight panel_of(const Weight& w, int panel) {
  return {w.kind, std::min(kPanel, w.n - panel * kPanel), w.k, 1, w.groups, w.data + size_t(panel) * w.panel_bytes, w.panel_bytes};
}

}  // namespace

size_t Sketch::bytes(const Weight& exact) {
  return size_t(exact.panels) * (codes_bytes(exact) + size_t(2 * exact.groups) * kPanel * sizeof(uint16_t));
}

Sketch::Sketch(const Kernels& kernels, const Weight& exact, uint8_t* memory, Pool& pool)
    : exact_(exact), norms_(size_t(2 * exact.groups)), middles_(size_t(exact.panels)), bounds_(size_t(exact.panels)) {
  const size_t stride = bytes(exact) / size_t(exact.panels), part = codes_bytes(exact);
  codes_ = {Kind::int4, exact.n, exact.k, exact.panels, exact.groups, memory, stride};
  errors_ = {Kind::f16, exact.n, 2 * exact.groups, exact.panels, (2 * exact.groups + kGroup - 1) / kGroup, memory + part, stride};
  pool.run(exact.panels, 1, [&](int, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int g = 0; g < exact.groups; ++g) {
        uint8_t* const to = memory + size_t(panel) * stride;
        kernels.sketch_group(exact.data + size_t(panel) * exact.panel_bytes + group_offset(kExact, g), exact.groups,
                             to + group_offset(kSmall, g), reinterpret_cast<uint16_t*>(to + part) + 2 * g * kPanel);
      }
  });
}

// What the sketch says of the first `limit` outputs in one panel; all outputs of the panel become minus infinity.
void Sketch::look(const Kernels& kernels, const Activations& a, int limit, int panel, float* out, uint8_t* scratch) {
  alignas(64) float middle[kPanel], reach[kPanel];
  const Weight codes = panel_of(codes_, panel);
  kernels.linear(codes, a, 0, 1, 0, 1, nullptr, middle, kPanel, scratch);
  kernels.linear_dense(panel_of(errors_, panel), norms_.data(), norms_.size(), 0, 1, 0, 1, nullptr, reach, kPanel);
  std::fill_n(out + panel * kPanel, codes.n, -kInfinity);
  float largest = -kInfinity, bound = -kInfinity;
  for (int c = 0; c < std::min(codes.n, limit - panel * kPanel); ++c) {
    largest = std::max(largest, middle[c]);
    bound = std::max(bound, middle[c] + reach[c]);
  }
  middles_[size_t(panel)] = largest;
  bounds_[size_t(panel)] = bound;
}

bool Sketch::largest(const Kernels& kernels, Pool& pool, const Activations& a, int limit, float* out, uint8_t* const* scratch) {
  if (skip_ > 0) {
    --skip_;
    return false;
  }
  for (int g = 0; g < exact_.groups; ++g)
    if (!norms_of(a, g, norms_.data() + 2 * g)) return false;
  const auto exactly = [&](int panel, int worker) {
    kernels.linear(exact_, a, 0, 1, panel, panel + 1, nullptr, out, size_t(exact_.n), scratch[worker]);
  };
  pool.run(exact_.panels, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) look(kernels, a, limit, int(panel), out, scratch[worker]);
  });
  const int first = int(std::max_element(middles_.begin(), middles_.end()) - middles_.begin());
  exactly(first, 0);
  const float least = *std::max_element(out + first * kPanel, out + std::min(limit, (first + 1) * kPanel));
  left_.clear();
  for (int panel = 0; panel < exact_.panels; ++panel)
    if (panel != first && bounds_[size_t(panel)] >= least) left_.push_back(panel);
  spared_bytes_ -= int64_t(bytes(exact_));
  if (int(left_.size()) * kMostPanels > exact_.panels) {
    skip_ = failures_ ? 1 << std::min(kMostSkipped, failures_) : 0;
    ++failures_;
    return false;
  }
  failures_ = 0;
  spared_bytes_ += int64_t(size_t(exact_.panels - 1 - int(left_.size())) * exact_.panel_bytes);
  pool.run(int64_t(left_.size()), 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) exactly(left_[size_t(i)], worker);
  });
  return true;
}

}  // namespace qwenbox
