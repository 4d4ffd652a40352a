// The C border of the library; native.py is its only client. Functions that can fail return -1 or NULL and leave a message in qw_error().
// One runtime is used by one thread at a time (calls take a lock); nothing here touches Python, so callers release the GIL.
#pragma once
#include <stdint.h>

#define QW_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qw_runtime qw_runtime;
typedef struct qw_program qw_program;

enum qw_opcode {
  QW_EMBED,        // tables: weight
  QW_LINEAR,       // inputs: x; tables: weight, bias or -1
  QW_RMS_NORM,     // inputs: x; tables: vector; eps
  QW_ROPE,         // inputs: x; tables: rope table; ints: head_dim
  QW_ATTENTION,    // inputs: q, k, v; ints: layer, heads, kv_heads, head_dim
  QW_SILU_MUL,     // inputs: gate, up
  QW_ADD,          // inputs: a, b
  QW_MOE,          // inputs: x; tables: router, gate, up, down, shared gate, up, down, router (or -1); ints: top_k, normalise
  QW_LOGITS_ROWS,  // inputs: x
  QW_OUTPUT        // inputs: x; ints: whether a large int8 matrix before it is kept a second time
};

typedef struct {
  int32_t code, output;
  int32_t inputs[3];
  int32_t tables[8];
  int32_t ints[4];
  float eps;
} qw_op;

typedef struct {
  int32_t width;
  int32_t narrow;  // 1: one row a logit row, 0: one row a token
  int32_t buffer;  // values with the same number share memory; -1: never used
} qw_value;

typedef struct {
  int32_t start, length, position, num_pages;
  const int32_t* pages;
} qw_span;

typedef struct {
  const int32_t* ids;
  const qw_span* spans;
  const int32_t* logits_rows;
  int32_t num_tokens, num_spans, num_logits;
  int32_t largest;  // > 0: of each row only the largest of the first so many logits is wanted; smaller ones may be minus infinity instead
} qw_batch;

typedef struct {
  double top_p, min_p;
  uint64_t seed, choice, position;
  float temperature, presence, frequency, repetition;
  int32_t top_k, vocab_limit;
  int32_t num_prompt, num_output, num_bias;
  int32_t logprobs;  // -1: none, otherwise how many of the most likely tokens
  const int32_t* prompt;
  const int32_t* output;
  const int32_t* bias_ids;
  const float* bias;
  const uint32_t* allowed;  // bit i % 32 of word i / 32: id i may be chosen; null: all may
} qw_sample_row;

typedef struct {
  int32_t id;  // -1: the row holds NaN or has no finite maximum, or nothing is allowed
  float logprob;
} qw_sample_result;

QW_API const char* qw_error(void);                   // of the last failed call of this thread
QW_API const char* qw_isa_available(void);           // names, best first, separated by spaces
QW_API const char* qw_isa_missing(const char* isa);  // why this machine does not run a variant; NULL if it does

// out[i] = fma(a[i], b[i], c[i]): makes the NumPy oracle quick; it has its own, slower, fma to be compared with.
QW_API void qw_fma(const float* a, const float* b, const float* c, uint64_t n, float* out);

// What rounding changes in weights [rows][k], see change.cpp: 0, or 1: a number is not finite or a step too large for fp16. `scales` [k]
// may be NULL.
QW_API int32_t qw_rounding_change(const float* weights, const float* scales, uint64_t rows, int32_t k, int32_t group, int32_t bits,
                                  float share, float* change);

QW_API qw_runtime* qw_runtime_new(int32_t threads, const char* isa);
QW_API void qw_runtime_free(qw_runtime* runtime);
// Room for `count` matrices of n rows by k columns. Returns a handle.
QW_API int32_t qw_weight(qw_runtime* runtime, int32_t kind, int32_t count, int32_t n, int32_t k);
// Stored bytes: at `data`, or if that is NULL at `offset` of an open file. They are not needed afterwards.
typedef struct {
  const uint8_t* data;
  uint64_t bytes;
  uint64_t offset;
  int32_t file;
} qw_stored;
// Packs panels of 64 rows [first, last) of matrix `index` from rows of `kind`, which are rounded if that is not the weight's own. 0, or -1;
// or 1: a number is not finite, 2: a scale is too large for fp16.
QW_API int32_t qw_weight_pack(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, int32_t kind,
                              const qw_stored* rows);
// Packs groups of 128 inputs [first, last) of matrix `index`, an int4 of any kind, from AutoAWQ's words of these inputs and from the zeros
// and scales of the whole matrix. 0, or -1; or 1: a scale is not finite.
QW_API int32_t qw_weight_pack_awq(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, const qw_stored* qweight,
                                  const uint32_t* qzeros, const uint16_t* scales);
// Of a whole matrix in words that hold consecutive inputs of one output: by groups of inputs as GPTQ has them, or by rows of outputs as
// compressed-tensors has them. `zeros` are words of consecutive outputs, each `plus` less than it should be; NULL: all in the middle.
typedef struct {
  const uint32_t* zeros;
  const uint16_t* scales;
  uint32_t plus;
  int32_t groups;
  int32_t by_rows;
} qw_word_numbers;
// Packs groups of 128 inputs [first, last), or panels of 64 rows where it is by rows, of matrix `index`. 0, or -1; or 1: a scale is not
// finite.
QW_API int32_t qw_weight_pack_words(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, const qw_stored* words,
                                    const qw_word_numbers* numbers);
QW_API int32_t qw_vector(qw_runtime* runtime, const float* data, int32_t n);
QW_API int32_t qw_rope_table(qw_runtime* runtime, const float* cos, const float* sin, int32_t positions, int32_t half);
QW_API uint64_t qw_weights_bytes(qw_runtime* runtime);

// Where `pages_of` is not null, the pages are those of that program, which holds the same operations and is freed later.
QW_API qw_program* qw_program_new(qw_runtime* runtime, const qw_op* ops, int32_t num_ops, const qw_value* values, int32_t num_values,
                                  int32_t max_tokens, int32_t max_logits, int32_t num_pages, const qw_program* pages_of);
QW_API void qw_program_free(qw_program* program);
QW_API uint64_t qw_program_kv_bytes(qw_program* program);
QW_API uint64_t qw_program_buffer_bytes(qw_program* program);
QW_API int64_t qw_program_spared_bytes(qw_program* program);  // of weights, that `largest` has spared the batches so far
QW_API int32_t qw_program_steps(qw_program* program);
// Runs steps [first, steps); returns the number of steps when it is through, or the step before which `cancel` or `deadline` (seconds of
// CLOCK_MONOTONIC, 0: none) stopped it. A step but the first that, as long as the last time, would end further behind the deadline than
// before it is left. `logits` [num_logits][vocabulary].
QW_API int32_t qw_program_run(qw_program* program, const qw_batch* batch, int32_t first, const int32_t* cancel, double deadline,
                              float* logits);
// The first `num_tokens` tokens of page `from`, in every layer, become those of page `to`, whose other slots are zeros. 0, or -1.
QW_API int32_t qw_program_copy_page(qw_program* program, int32_t from, int32_t to, int32_t num_tokens);
// One result a row; top_ids and top_logprobs [num_rows][max_top], max_top >= every row's `logprobs`.
QW_API int32_t qw_sample(qw_runtime* runtime, const float* logits, int32_t vocab, const qw_sample_row* rows, int32_t num_rows,
                         int32_t max_top, qw_sample_result* results, int32_t* top_ids, float* top_logprobs);

#ifdef __cplusplus
}
#endif
