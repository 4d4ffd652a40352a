// The border between the instruction-set variants and everything else: plain data, and one table of functions a variant.
// Each variant_*.cpp compiles what variant_impl.h names once with its own flags, in an anonymous namespace, over one small vector
// vocabulary (vec_*.h); amx has only its own products beside what avx512vnni has. Nothing else in the library may contain instructions
// beyond the baseline. Formulas: docs/numeric-contract.md.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__  // functions stay functions, or compiling takes minutes
#define QWENBOX_INLINE inline
#else
#define QWENBOX_INLINE inline __attribute__((always_inline))
#endif
#ifdef QWENBOX_WITHOUT_FETCHING
#define QWENBOX_FETCH(statement) (void)p
#else
#define QWENBOX_FETCH(statement) statement
#endif

namespace qwenbox {

constexpr int kGroup = 128;        // inputs that share one activation scale
constexpr int kPanel = 64;         // output channels packed together
constexpr int kPageTokens = 32;    // tokens of one KV page
constexpr int kBlockTokens = 256;  // tokens of one attention block

// Same numbers as types.TENSOR_KINDS.
enum class Kind : int32_t { f32, f16, bf16, q4_0, q4_1, q5_0, q8_0, q4_k, q5_k, q6_k, int4, int8, int4_64, int4_32, uint8 };
constexpr int kKinds = int(Kind::uint8) + 1;

// A matrix of n output channels by k inputs, repacked without loss into panels of 64 channels (layout.h).
struct Weight {
  Kind kind;
  int n, k;             // as in the file
  int panels, groups;   // ceil(n / 64), ceil(k / 128)
  const uint8_t* data;  // 64-byte aligned, panels * panel_bytes
  size_t panel_bytes;   // stride between panels
};

// What belongs to the 128 codes of one row and group: sums of 8 consecutive codes (16 of them), of 16 (8), of 32 (4), of 128 (1), a zero;
// the scale.
struct alignas(64) RowGroup {
  int16_t sums[30];
  float scale;
};

// Rows of activations rounded to int8, in blocks of 16 rows; k padded to a multiple of 128, rows to 16. Both arrays are 64-byte aligned.
struct Activations {
  int rows, k, groups;
  int8_t* codes;      // [rows/16][k/64][16][64]
  RowGroup* members;  // [rows/16][groups][16]
  // For variants that multiply many rows from unsigned codes, else null: codes + 128 as [k/64][rows | 1][64], scales as [groups][rows | 1].
  // Odd, so that the lines of a row fall into different sets of the caches.
  uint8_t* raised = nullptr;
  float* scales = nullptr;
};
// Where a row's part of a group stands: its member; its first 64 codes, the other 64 are kCodesHalf further.
static inline size_t member_index(int groups, size_t row, int g) { return (row / 16 * size_t(groups) + size_t(g)) * 16 + row % 16; }
static inline size_t code_index(int groups, size_t row, int g) { return (row / 16 * size_t(groups) + size_t(g)) * 2048 + row % 16 * 64; }
constexpr int kCodesHalf = 1024;
// The same where they are raised: its scale; its first 64 codes, the other 64 are raised_half() further.
static inline size_t raised_rows(const Activations& a) { return size_t(a.rows) | 1; }
static inline size_t scale_index(const Activations& a, size_t row, int g) { return size_t(g) * raised_rows(a) + row; }
static inline size_t raised_index(const Activations& a, size_t row, int g) { return (size_t(g) * 2 * raised_rows(a) + row) * 64; }
static inline size_t raised_half(const Activations& a) { return raised_rows(a) * 64; }

// Keys and values of one layer and kv head. Each page is [keys, values][kPageTokens][head_dim]; pages with neighbouring ids lie side by
// side, then come those of the next head and layer. So a cache that fills takes memory from the system a little at a time, not a huge page
// for every head of every layer at once, which stops everybody for as long as the system needs to clear them.
constexpr int kPageCluster = 8;
struct KvPages {
  uint16_t* first;
  size_t page_stride, cluster_stride;   // elements
  uint16_t* operator[](int id) const {  // its keys; its values follow
    return first + size_t(id / kPageCluster) * cluster_stride + size_t(id % kPageCluster) * page_stride;
  }
};

struct AttentionTask {  // one kv head of one span, for the query rows [row_begin, row_end) of the span
  const float* q;       // [row][q_stride], the first query head of this kv head at q
  float* out;           // same layout as q
  size_t q_stride, out_stride;
  int row_begin, row_end;
  int position;         // of row 0 of the span
  int group, head_dim;  // query heads a kv head
  float scale;
  const int32_t* pages;  // page ids covering [0, position + row_end)
  KvPages kv;
  float* scratch;  // attention_scratch() floats
};

enum class Rounding { done, not_finite, too_large };

struct Kernels {
  const char* name;
  // x: [rows][stride] float32 -> rows [row_begin, row_end) of `out`
  void (*quantize_rows)(const float* x, size_t stride, int row_begin, int row_end, Activations& out);
  // out[row][n] for rows [row_begin, row_end) and channels of panels [panel_begin, panel_end); quantised kinds. Adds bias if not null.
  // Never writes channels >= n.
  void (*linear)(const Weight& w, const Activations& a, int row_begin, int row_end, int panel_begin, int panel_end, const float* bias,
                 float* out, size_t out_stride, uint8_t* scratch);
  size_t (*linear_scratch)(int rows);  // bytes of scratch that one thread needs for `rows` rows
  // the same for f32, f16, bf16 weights over float32 inputs
  void (*linear_dense)(const Weight& w, const float* x, size_t x_stride, int row_begin, int row_end, int panel_begin, int panel_end,
                       const float* bias, float* out, size_t out_stride);
  // one row of a packed weight, dequantised exactly as the gguf package does (unpack_row)
  void (*weight_row)(const Weight& w, int row, float* out);
  void (*rms_norm)(const float* x, const float* w, int n, float eps, float* out);
  void (*rope)(const float* x, const float* cos, const float* sin, int heads, int head_dim, float* out);  // one row; out may be x
  void (*silu_mul)(const float* gate, const float* up, size_t n, float* out);
  void (*add)(const float* a, const float* b, size_t n, float* out);
  void (*axpy)(float a, const float* x, size_t n, float* out);                          // out = fma(a, x, out)
  void (*fused)(const float* a, const float* b, const float* c, size_t n, float* out);  // out = fma(a, b, c), for the contract oracle
  float (*sigmoid)(float x);
  void (*softmax)(const float* x, int n, float* out);  // exp(x - max) / sum16
  void (*store_kv)(const float* k, const float* v, int head_dim, int slot, uint16_t* keys,
                   uint16_t* values);  // one token of one kv head into its page
  void (*attention)(const AttentionTask& task);
  // The same in two halves: what each of the blocks [begin, end) of 256 tokens contributes, attention_partial() floats a block, computed
  // anywhere; then all of them in order.
  void (*attention_blocks)(const AttentionTask& task, int begin, int end, float* partials);
  void (*attention_merge)(const AttentionTask& task, const float* partials);
  size_t (*attention_scratch)(int rows, int group, int head_dim);  // floats
  size_t (*attention_partial)(int rows, int group, int head_dim);
  // logits[i] -> exp(logits[i] - max), and log-sum-exp pieces for the sampler: returns max; *sum in float64, 16 lanes as the contract says
  float (*exp_sum)(const float* logits, int n, float* out_or_null, double* sum);
  // One group of a panel of int8 as int4 with zeros, and what that loses (sketch.h): of each channel the largest error, then their norms.
  void (*sketch_group)(const uint8_t* exact, int groups, uint8_t* small, uint16_t* errors);
  // 128 plain numbers of a dense kind to one raw block of int8 or int4, or to bf16; or a number is not finite, a scale too large for fp16.
  Rounding (*round_group)(Kind dense, Kind to, const uint8_t* numbers, uint8_t* block);
  bool raised = false;  // whether linear() is faster with Activations::raised
  int panels = 1;       // that one call of linear() should have, if it can, when there are many rows
};

const Kernels& kernels_generic();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avxvnni();
const Kernels& kernels_avx512vnni();
const Kernels& kernels_amx();

// crossover.cpp: from how many rows on the amx variant multiplies by tiles, by kind; below as avx512vnni does, with the same bits. Zero
// until they are measured, once a process.
extern int tile_crossovers[kKinds];
void measure_tile_crossovers();
#endif

// isa.cpp: the variants this processor and kernel can run, best first; nullptr-terminated.
const Kernels* const* available_kernels();
const Kernels* find_kernels(const char* name);  // nullptr if unknown or unavailable
// Why this machine does not run a variant, for a person; nullptr if it does.
const char* missing_kernels(const char* name);

// weight.cpp
struct WeightLayout {
  size_t panel_bytes;
  int panels, groups;
};
WeightLayout weight_layout(Kind kind, int n, int k);
size_t raw_row_bytes(Kind kind, int k);
// Packs panels [panel_begin, panel_end) of raw rows (as in the file) to dst (start of the whole weight). Channels past n are zero. False
// where a scale or a plain number is NaN or infinite.
bool pack_panels(Kind kind, int n, int k, const uint8_t* raw, int panel_begin, int panel_end, uint8_t* dst);
// Row `row` of a packed weight, dequantised in the order of operations of the gguf package; Kernels::weight_row of every variant.
void unpack_row(const Weight& w, int row, float* out);

// round.cpp
// Raw rows of one kind to raw rows of bf16, int8 or int4; stops at what Kernels::round_group refuses.
Rounding round_rows(const Kernels& kernels, Kind kind, Kind to, int rows, int k, const uint8_t* raw, uint8_t* out);

// awq.cpp
// 128 inputs of AutoAWQ's words of eight outputs, qweight [128][n / 8], and their groups' qzeros [n / 8] and scales fp16 [n], to their
// place in every panel of int4, int4_64 or int4_32; `dst` is that in the first. False where a scale is NaN or infinite.
bool pack_awq(Kind kind, int n, const uint32_t* qweight, const uint32_t* qzeros, const uint16_t* scales, uint8_t* dst, size_t panel_bytes);

}  // namespace qwenbox
