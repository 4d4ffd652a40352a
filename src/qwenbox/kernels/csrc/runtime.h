// Weights, and programs that run batches over them. All errors are exceptions (std::runtime_error with a message for a person).
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "qwenbox.h"
#include "sketch.h"

namespace qwenbox {

// Zeroed memory in chunks aligned to 2 MiB, huge pages where the system has them; freed as a whole.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint8_t* allocate(size_t bytes, const char* purpose);  // 128-byte aligned
  template <class T>
  T* array(size_t count, const char* purpose) {
    return reinterpret_cast<T*>(allocate(count * sizeof(T), purpose));
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Chunk {
    uint8_t* data;
    size_t size;
  };
  std::vector<Chunk> chunks_;
  size_t used_ = 0;   // of the last chunk
  size_t bytes_ = 0;  // handed out
};

struct Rope {
  const float* cos;
  const float* sin;
  int positions, half;
};

struct Vector {
  const float* data;
  int n;
};

using Stack = std::vector<Weight>;  // one matrix, or one an expert, all of one kind and shape

class Runtime {
 public:
  Runtime(int threads, const Kernels& kernels) : kernels(kernels), pool(threads), scratches_(static_cast<size_t>(threads)) {}

  int add_weight(int kind, int count, int n, int k);
  Rounding pack_weight(int handle, int index, int first, int last, int kind, const qw_stored& rows);
  Rounding pack_awq(int handle, int index, int first, int last, const qw_stored& qweight, const uint32_t* qzeros, const uint16_t* scales);
  Rounding pack_words(int handle, int index, int first, int last, const qw_stored& words, const qw_word_numbers& numbers);
  int add_vector(const float* data, int n);
  int add_rope(const float* cos, const float* sin, int positions, int half);
  size_t weights_bytes() const { return arena_.bytes(); }
  void sample(const float* logits, int vocab, const qw_sample_row* rows, int num_rows, int max_top, qw_sample_result* results,
              int32_t* top_ids, float* top_logprobs);

  const Stack& stack(int handle) const;
  const Vector& vector(int handle) const;
  const Rope& rope(int handle) const;

  struct SamplerScratch {
    std::vector<float> logits, values, weights;
    std::vector<uint64_t> keys, sorted;
    std::vector<int32_t> ids, counts;
  };

  const Kernels& kernels;
  Pool pool;
  std::mutex mutex;

 private:
  const Weight& matrix(int handle, int index) const;
  uint8_t* panels_of(int handle, int index);
  template <class Body>
  void each_piece(const qw_stored& stored, size_t piece_bytes, const Body& body);

  Arena arena_;
  std::deque<Stack> stacks_;      // deques: programs keep references
  std::vector<uint8_t*> packed_;  // the memory of each stack
  std::deque<Vector> vectors_;
  std::deque<Rope> ropes_;
  std::vector<SamplerScratch> scratches_;  // one a worker
};

class Program {
 public:
  // With `pages_of`, the pages for keys and values are those of that program, which holds the same operations and lives longer.
  Program(Runtime& runtime, const qw_op* ops, int num_ops, const qw_value* values, int num_values, int max_tokens, int max_logits,
          int num_pages, const Program* pages_of);

  int run(const qw_batch& batch, int first, const int32_t* cancel, double deadline, float* logits);
  int steps() const { return int(steps_.size()); }
  size_t kv_bytes() const { return kv_arena_.bytes(); }
  void copy_page(int from, int to, int num_tokens);
  size_t buffer_bytes() const { return arena_.bytes(); }
  int64_t spared_bytes() const { return sketch_ ? sketch_->spared_bytes() : 0; }
  Runtime& runtime() const { return runtime_; }

 private:
  enum class Code { embed, quantize, linear, rms_norm, rope, attention, silu_mul, add, moe, logits_rows };
  static constexpr int kToLogits = -1;  // as a buffer number: the caller's logits

  struct Slot {
    int width = 0;
    bool narrow = false;
    int buffer = 0;
  };
  struct LinearItem {
    const Weight* weight;
    const float* bias;
    Slot output;
  };
  struct Moe {
    const Weight* router;
    const Stack *gate, *up, *down;
    const Weight *shared_gate = nullptr, *shared_up = nullptr, *shared_down = nullptr, *shared_router = nullptr;
    int top_k = 0;
    bool normalise = false;
  };
  struct Step {
    Code code;
    Slot inputs[3], output;
    const Weight* table = nullptr;
    const float* vector = nullptr;
    const Rope* rope = nullptr;
    std::vector<LinearItem> linears;  // matrices that read the same input run as one job
    Sketch* sketch = nullptr;         // of the head
    Moe moe;
    int segment = 0;  // length of a normalised segment, or head_dim
    int heads = 0, kv_heads = 0;
    size_t kv_begin = 0;  // of the layer in a cluster of pages, elements
    float eps = 0;
  };
  struct Input {  // rows of float32, and the same rows rounded, where a quantised matrix reads them
    const float* x;
    size_t stride;
    const Activations* codes;
  };
  struct Target {
    const Weight* weight;
    const float* bias;
    float* out;
    size_t stride;
  };
  struct Rows {  // of a span, that attend together
    int span, begin, end;
    int blocks, parts;       // of 256 tokens; tasks that share them, for each kv head
    float* partials;         // [kv_heads][blocks], where there are several parts
    std::atomic<int>* left;  // parts that are not done, for each kv head
  };
  struct Part {
    int rows, begin, end;  // index of the rows, blocks
  };
  struct Segment {  // rows of one expert in the gathered buffers
    int expert, begin, rows;
  };
  struct MoeBuffers {
    int capacity = 0, width = 0, inner = 0, shared_inner = 0, experts = 0, top_k = 0;
    float *router, *gathered, *gate, *up, *down, *shared_gate, *shared_up, *shared_down, *shared_router;
    float* weights;           // [tokens][top_k], ascending expert id
    int32_t *chosen, *place;  // the same: expert, row in the gathered buffers
    Activations input, hidden, shared_hidden;
  };

  void compile(const qw_op* ops, int num_ops, const qw_value* values, int num_values, const Program* pages_of);
  void allocate();
  Moe compile_moe(const qw_op& op, const Slot& x, const Slot& y);
  Activations activations(int rows, int k);
  void check(const qw_batch& batch, int first) const;

  int rows(const Slot& slot) const { return slot.narrow ? batch_->num_logits : batch_->num_tokens; }
  float* data(const Slot& slot) const { return slot.buffer == kToLogits ? logits_ : buffers_[slot.buffer]; }
  void execute(const Step& step);
  void embed(const Step& step);
  void quantize(const float* x, size_t stride, int rows, Activations& out);
  void linears(const Target* targets, int count, const Input& input, int rows);
  void apply(const Target& target, const Input& input, int row_begin, int row_end, int panel_begin, int panel_end, int worker);
  void run_rows(const Step& step);
  void run_row(const Step& step, size_t row);
  void attend(const Step& step);
  void plan_attention();
  KvPages pages(const Step& step, int head) const;
  void store(const Step& step, const qw_span& span, int head, int begin, int end);
  void multiply(const float* gate, const float* up, size_t n, float* out);
  void moe(const Step& step);
  void route(const Moe& moe, int tokens);
  void experts(const Moe& moe, const Segment* segments, int count, const Step& step);
  void shared_expert(const Moe& moe, const Step& step, int tokens);

  Runtime& runtime_;
  const Kernels& kernels_;
  Pool& pool_;
  const int max_tokens_, max_logits_, num_pages_;
  int num_ids_ = 0;        // ids are below this
  int num_logits_ = 0;     // of a row
  int max_positions_ = 0;  // positions are below this
  Arena arena_, kv_arena_;
  uint16_t* kv_ = nullptr;  // [clusters][kv_cluster_]
  size_t kv_cluster_ = 0;   // elements of kPageCluster pages of all layers and heads
  std::shared_ptr<Sketch> sketch_;
  std::vector<Step> steps_;
  std::vector<double> step_seconds_;  // what each took the last time
  std::vector<float*> buffers_;
  std::vector<size_t> buffer_floats_;
  std::vector<uint8_t*> linear_scratch_;
  std::vector<float*> attention_scratch_;
  float* partials_ = nullptr;
  size_t partials_floats_ = 0;
  std::unique_ptr<std::atomic<int>[]> left_;
  int kv_heads_ = 0;           // the most of any attention
  size_t partial_floats_ = 0;  // of one query row, kv head and block, the most of any attention
  Activations codes_{};        // of the value that was quantised last
  MoeBuffers moe_;
  // The batch that runs.
  const qw_batch* batch_ = nullptr;
  float* logits_ = nullptr;
  std::vector<int> positions_;
  std::vector<Rows> attention_rows_;
  std::vector<Part> attention_parts_;
  bool store_first_ = false;  // some span has rows in several tasks that read what one of them would write
  std::vector<Segment> segments_;
};

}  // namespace qwenbox
