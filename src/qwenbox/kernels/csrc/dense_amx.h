// Products of bf16 weights with activations rounded to bf16, by AMX tiles, for any number of rows: docs/numeric-contract.md, bf16 by tiles.
// The sums stay in memory between blocks of inputs: a tile of float32 is stored and loaded without loss.
#pragma once
#include "amx.h"
#include "layout.h"

namespace qwenbox {
namespace {
namespace amx {

constexpr int kDepth = 32;                  // inputs of one tile
constexpr int kDenseRows = 256;             // rows that share one unpacking
constexpr int kDenseSteps = 4;              // tiles along the inputs that are unpacked together
constexpr int kDenseTile = kTileBytes / 2;  // bf16

struct alignas(64) DenseScratch {
  float acc[kDenseRows / 16][kPanels][4][256];            // [16 rows][panel][16 channels]
  uint16_t weights[kPanels][kDenseSteps][4][kDenseTile];  // [16 pairs of inputs][16 channels][2]
  uint16_t inputs[2][kDenseSteps][kDenseTile];            // [16 rows][32 inputs]
};

// Inputs [k, k + 32) of a panel, those past the end as zeros.
inline void unpack_dense(const uint16_t* panel, int k, int inputs, uint16_t (*out)[kDenseTile]) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(order);
  for (int r = 0; r < 16; ++r) {
    const uint16_t* const line = panel + size_t(k + 2 * r) * kPanel;
    const int left = inputs - k - 2 * r;
    for (int b = 0; b < 4; ++b) {
      __m512i pair = _mm512_setzero_si512();
      if (left > 0) {
        if (b % 2 == 0) prefetch(line + 16 * b + 4096), prefetch(line + 16 * b + 4096 + kPanel);
        pair = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)(line + 16 * b)));
      }
      if (left > 1) pair = _mm512_inserti64x4(pair, _mm256_loadu_si256((const __m256i*)(line + kPanel + 16 * b)), 1);
      _mm512_store_si512(out[b] + 32 * r, _mm512_permutexvar_epi16(interleave, pair));
    }
  }
}

// Inputs [k, k + 32) of 16 rows, those past the ends as zeros.
inline void round_inputs(const float* x, size_t stride, int rows, int k, int inputs, uint16_t* out) {
  for (int r = 0; r < 16; ++r)
    for (int i = 0; i < kDepth; i += 16) {
      const int left = r < rows ? inputs - k - i : 0;
      const float* const p = x + size_t(r) * stride + size_t(k + i);
      store_bf16(out + kDepth * r + i, left >= 16 ? load(p) : left > 0 ? load_first(p, left) : splat(0.0f));
    }
}

// MB blocks of 16 rows by 4 / MB of channels; `next_rows` floats between the sums of two blocks.
template <int MB>
void multiply_dense(const uint16_t (*inputs)[kDenseSteps][kDenseTile], const uint16_t (*weights)[4][kDenseTile], int first, int steps,
                    float* acc, size_t next_rows) {
  constexpr int NB = 4 / MB;
  const auto sums = [&](int i) { return acc + size_t(i / NB) * next_rows + i % NB * 256; };
  tile_load<0>(sums(0), 64);
  tile_load<1>(sums(1), 64);
  tile_load<2>(sums(2), 64);
  tile_load<3>(sums(3), 64);
  for (int s = 0; s < steps; ++s) {
    const auto w = [&](int n) { return weights[s][first + n]; };
    tile_load<4>(inputs[0][s], 64);
    tile_load<6>(w(0), 64);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (MB == 2) {
      tile_load<5>(inputs[1][s], 64);
      tile_dot_bf16<2, 5, 6>();
      tile_load<7>(w(1), 64);
      tile_dot_bf16<1, 4, 7>();
      tile_dot_bf16<3, 5, 7>();
    } else {
      tile_load<7>(w(1), 64);
      tile_dot_bf16<1, 4, 7>();
      tile_load<6>(w(2), 64);
      tile_dot_bf16<2, 4, 6>();
      tile_load<7>(w(3), 64);
      tile_dot_bf16<3, 4, 7>();
    }
  }
  tile_store<0>(sums(0), 64);
  tile_store<1>(sums(1), 64);
  tile_store<2>(sums(2), 64);
  tile_store<3>(sums(3), 64);
}

// Rows [0, rows), at most kDenseRows, of x and out; out begins at the channels of the first panel.
inline void dense_panels(const Weight& w, const float* x, size_t x_stride, int rows, int panel, int panels, DenseScratch& s) {
  const int blocks = (rows + 15) / 16;
  constexpr size_t next_rows = sizeof s.acc[0] / sizeof(float);
  std::memset(s.acc, 0, size_t(blocks) * sizeof s.acc[0]);
  for (int k = 0; k < w.k; k += kDepth * kDenseSteps) {
    const int left = (w.k - k + kDepth - 1) / kDepth, steps = left < kDenseSteps ? left : kDenseSteps;
    for (int p = 0; p < panels; ++p)
      for (int i = 0; i < steps; ++i)
        unpack_dense(reinterpret_cast<const uint16_t*>(w.data + size_t(panel + p) * w.panel_bytes), k + kDepth * i, w.k, s.weights[p][i]);
    for (int block = 0; block < blocks; block += 2) {
      const bool pair = block + 1 < blocks;
      for (int m = 0; m < (pair ? 2 : 1); ++m)
        for (int i = 0; i < steps; ++i) {
          const int row = 16 * (block + m);
          round_inputs(x + size_t(row) * x_stride, x_stride, rows - row, k + kDepth * i, w.k, s.inputs[m][i]);
        }
      for (int p = 0; p < panels; ++p) {
        if (!pair) {
          multiply_dense<1>(s.inputs, s.weights[p], 0, steps, s.acc[block][p][0], next_rows);
          continue;
        }
        multiply_dense<2>(s.inputs, s.weights[p], 0, steps, s.acc[block][p][0], next_rows);
        multiply_dense<2>(s.inputs, s.weights[p], 2, steps, s.acc[block][p][2], next_rows);
      }
    }
  }
}

void linear_dense(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
                  const float* bias, float* out, size_t out_stride) {
  if (w.kind != Kind::bf16)
    return kernels_avx512vnni().linear_dense(w, x, x_stride, row_begin, row_end, panel_begin, panel_end, bias, out, out_stride);
  static constexpr TileConfig config = make_config(false);
  ensure_config(config);
  DenseScratch scratch;
  for (int panel = panel_begin; panel < panel_end; panel += kPanels) {
    const int panels = panel_end - panel < kPanels ? panel_end - panel : kPanels;
    for (int row = row_begin; row < row_end; row += kDenseRows) {
      const int rows = row_end - row < kDenseRows ? row_end - row : kDenseRows;
      dense_panels(w, x + size_t(row) * x_stride, x_stride, rows, panel, panels, scratch);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < panels * kPanel; c += 16) {
          const int channel = panel * kPanel + c, count = w.n - channel < 16 ? w.n - channel : 16;
          if (count <= 0) break;
          Floats y = load(scratch.acc[r / 16][c / kPanel][c % kPanel / 16] + r % 16 * 16);
          if (bias) y = y + load_first(bias + channel, count);
          store_first(out + size_t(row + r) * out_stride + channel, y, count);
        }
    }
  }
}

}  // namespace amx
}  // namespace
}  // namespace qwenbox
