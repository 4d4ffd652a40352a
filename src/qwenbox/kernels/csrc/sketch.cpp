#include "sketch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "layout.h"

namespace qwenbox {
namespace {

constexpr int kLevels = 15, kQuads = kGroup / 4, kLane = 4 * kPanel;  // a quad of inputs of all channels
constexpr int kMostPanels = 3;   // of so many one may have to be multiplied exactly, or the whole matrix is
constexpr int kMostSkipped = 6;  // 2^6 calls
constexpr int kLimitStep = 7;
constexpr float kUsualError = 0.15f;   // the largest of a group's errors over their norm
constexpr float kLargestNorm = 1e25f;  // of inputs: every product and sum is then finite
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Layout kExact = layout_of(Kind::int8), kSmall = layout_of(Kind::int4);

// At least `value`, infinity where that is not a number.
uint16_t to_f16_above(float value) {
  if (!(value <= 65504.0f)) return 0x7C00;
  const uint16_t half = to_f16(value);
  return uint16_t(half + (from_f16(half) < value));
}

// One group of a panel: int8 to int4 and the norms of the difference.
void sketch_group(const uint8_t* exact, int groups, uint8_t* small, uint16_t* errors) {
  alignas(64) uint8_t low[kLane], high[kLane], levels[kQuads][kLane];
  std::memset(low, 128, sizeof low);
  std::memset(high, 128, sizeof high);
  for (int q = 0; q < kQuads; ++q)
    for (int i = 0; i < kLane; ++i) {
      const uint8_t code = exact[kLane * q + i];
      low[i] = std::min(low[i], code);
      high[i] = std::max(high[i], code);
    }
  alignas(64) float scale[kLane], step[kLane], ratio[kLane], zero[kLane], lost[kLane] = {}, most[kLane] = {}, whole[kLane] = {};
  for (int c = 0; c < kPanel; ++c) {
    const uint8_t *l = low + 4 * c, *h = high + 4 * c;
    const float s = from_f16(read<uint16_t>(exact + kExact.code_bytes() + 2 * c));
    const float one = s * float(*std::min_element(l, l + 4) - 128), other = s * float(*std::max_element(h, h + 4) - 128);
    const float width = std::fabs(other - one) / kLevels;
    const uint16_t half = width <= 65504.0f ? to_f16(width) : 0;  // else everything is error
    const float t = from_f16(half), r = t > 0 ? s / t : 0.0f;
    const int z = t > 0 ? std::min(int(std::rint(-std::min(one, other) / t)), kLevels) : 0;
    write(small + kSmall.code_bytes() + 2 * c, half);
    write(small + kSmall.code_bytes() + 2 * (kPanel + c), int16_t(-z));
    for (int i = 4 * c; i < 4 * c + 4; ++i) scale[i] = s, step[i] = t, ratio[i] = r, zero[i] = float(z);
  }
  for (int q = 0; q < kQuads; ++q)
    for (int i = 0; i < kLane; ++i) {
      const float code = float(int(exact[kLane * q + i]) - 128);
      const float level = std::min(std::max((code * ratio[i] + kRounder) - kRounder + zero[i], 0.0f), float(kLevels));
      const float value = code * scale[i], error = value - (level - zero[i]) * step[i];
      levels[q][i] = uint8_t(int(level));
      lost[i] += error * error;
      most[i] = std::max(most[i], std::fabs(error));
      whole[i] += value * value;
    }
  for (int t = 0; t < 2; ++t)
    for (int r = 0; r < 8; ++r)
      for (int i = 0; i < kLane; ++i) small[kLane * (8 * t + r) + i] = uint8_t(levels[16 * t + r][i] | levels[16 * t + r + 8][i] << 4);
  for (int c = 0; c < kPanel; ++c) {
    const auto norm = [c](const float* squares) {
      return std::sqrt(squares[4 * c] + squares[4 * c + 1] + squares[4 * c + 2] + squares[4 * c + 3]);
    };
    const float error = norm(lost) * (1 + 0x1p-14f), rounding = float(groups + 8) * 0x1p-23f * (norm(whole) + error);
    errors[c] = to_f16_above(*std::max_element(most + 4 * c, most + 4 * c + 4) + rounding);
    errors[kPanel + c] = to_f16_above(error + rounding);
  }
}

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

Sketch::Sketch(const Weight& exact, uint8_t* memory, Pool& pool)
    : exact_(exact), norms_(size_t(2 * exact.groups)), middles_(size_t(exact.panels)), bounds_(size_t(exact.panels)) {
  const size_t stride = bytes(exact) / size_t(exact.panels), part = codes_bytes(exact);
  codes_ = {Kind::int4, exact.n, exact.k, exact.panels, exact.groups, memory, stride};
  errors_ = {Kind::f16, exact.n, 2 * exact.groups, exact.panels, (2 * exact.groups + kGroup - 1) / kGroup, memory + part, stride};
  pool.run(exact.panels, 1, [&](int, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int g = 0; g < exact.groups; ++g) {
        uint8_t* const to = memory + size_t(panel) * stride;
        sketch_group(exact.data + size_t(panel) * exact.panel_bytes + group_offset(kExact, g), exact.groups, to + group_offset(kSmall, g),
                     reinterpret_cast<uint16_t*>(to + part) + 2 * g * kPanel);
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
