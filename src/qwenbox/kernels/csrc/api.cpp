// The C functions of qwenbox.h over the classes of runtime.h: locks, and exceptions as messages.
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "change.h"
#include "runtime.h"

struct qw_runtime : qwenbox::Runtime {
  using Runtime::Runtime;
};
struct qw_program : qwenbox::Program {
  using Program::Program;
};

namespace {

thread_local std::string message;

// f(), or `failed` with the message of what it threw.
template <class Result, class F>
Result guarded(Result failed, const F& f) {
  try {
    return f();
  } catch (const std::exception& e) {
    message = e.what();
  } catch (...) {
    message = "unknown exception";
  }
  return failed;
}

template <class Result, class F>
Result guarded(Result failed, qwenbox::Runtime& runtime, const F& f) {
  return guarded(failed, [&]() -> Result {
    const std::lock_guard<std::mutex> lock(runtime.mutex);
    return f();
  });
}

}  // namespace

const char* qw_error() { return message.c_str(); }

const char* qw_isa_available() {
  static const std::string names = [] {
    std::string all;
    for (const qwenbox::Kernels* const* k = qwenbox::available_kernels(); *k; ++k)
      all += (all.empty() ? "" : " ") + std::string((*k)->name);
    return all;
  }();
  return names.c_str();
}

const char* qw_isa_missing(const char* isa) { return qwenbox::missing_kernels(isa); }

void qw_fma(const float* a, const float* b, const float* c, uint64_t n, float* out) {
  qwenbox::available_kernels()[0]->fused(a, b, c, n, out);
}

int32_t qw_rounding_change(const float* weights, const float* scales, uint64_t rows, int32_t k, int32_t group, int32_t bits, float share,
                           float* change) {
  return qwenbox::rounding_change(weights, scales, rows, k, group, bits, share, change) ? 0 : 1;
}

qw_runtime* qw_runtime_new(int32_t threads, const char* isa) {
  return guarded<qw_runtime*>(nullptr, [&] {
    const qwenbox::Kernels* kernels = qwenbox::find_kernels(isa);
    if (!kernels)
      throw std::runtime_error("instruction set " + std::string(isa) + " is not available; this machine has " + qw_isa_available());
#if defined(__x86_64__)
    if (kernels == qwenbox::find_kernels("amx")) qwenbox::measure_tile_crossovers();  // kernels_amx() itself runs where AMX does
#endif
    return new qw_runtime(threads, *kernels);
  });
}

void qw_runtime_free(qw_runtime* runtime) { delete runtime; }

int32_t qw_weight(qw_runtime* runtime, int32_t kind, int32_t count, int32_t n, int32_t k) {
  return guarded(-1, *runtime, [&] { return runtime->add_weight(kind, count, n, k); });
}

int32_t qw_weight_pack(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, int32_t kind,
                       const qw_stored* rows) {
  return guarded(-1, *runtime, [&] { return int32_t(runtime->pack_weight(weight, index, first, last, kind, *rows)); });
}

int32_t qw_weight_pack_awq(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, const qw_stored* qweight,
                           const uint32_t* qzeros, const uint16_t* scales) {
  return guarded(-1, *runtime, [&] { return int32_t(runtime->pack_awq(weight, index, first, last, *qweight, qzeros, scales)); });
}

int32_t qw_weight_pack_words(qw_runtime* runtime, int32_t weight, int32_t index, int32_t first, int32_t last, const qw_stored* words,
                             const qw_word_numbers* numbers) {
  return guarded(-1, *runtime, [&] { return int32_t(runtime->pack_words(weight, index, first, last, *words, *numbers)); });
}

int32_t qw_vector(qw_runtime* runtime, const float* data, int32_t n) {
  return guarded(-1, *runtime, [&] { return runtime->add_vector(data, n); });
}

int32_t qw_rope_table(qw_runtime* runtime, const float* cos, const float* sin, int32_t positions, int32_t half) {
  return guarded(-1, *runtime, [&] { return runtime->add_rope(cos, sin, positions, half); });
}

uint64_t qw_weights_bytes(qw_runtime* runtime) { return runtime->weights_bytes(); }

qw_program* qw_program_new(qw_runtime* runtime, const qw_op* ops, int32_t num_ops, const qw_value* values, int32_t num_values,
                           int32_t max_tokens, int32_t max_logits, int32_t num_pages, const qw_program* pages_of) {
  return guarded<qw_program*>(nullptr, *runtime, [&] {
    return new qw_program(*runtime, ops, num_ops, values, num_values, max_tokens, max_logits, num_pages, pages_of);
  });
}

void qw_program_free(qw_program* program) { delete program; }

uint64_t qw_program_kv_bytes(qw_program* program) { return program->kv_bytes(); }

uint64_t qw_program_buffer_bytes(qw_program* program) { return program->buffer_bytes(); }

int64_t qw_program_spared_bytes(qw_program* program) { return program->spared_bytes(); }

int32_t qw_program_steps(qw_program* program) { return program->steps(); }

int32_t qw_program_run(qw_program* program, const qw_batch* batch, int32_t first, const int32_t* cancel, double deadline, float* logits) {
  return guarded(-1, program->runtime(), [&] { return program->run(*batch, first, cancel, deadline, logits); });
}

int32_t qw_program_copy_page(qw_program* program, int32_t from, int32_t to, int32_t num_tokens) {
  return guarded(-1, program->runtime(), [&] {
    program->copy_page(from, to, num_tokens);
    return 0;
  });
}

int32_t qw_sample(qw_runtime* runtime, const float* logits, int32_t vocab, const qw_sample_row* rows, int32_t num_rows, int32_t max_top,
                  qw_sample_result* results, int32_t* top_ids, float* top_logprobs) {
  return guarded(-1, *runtime, [&] {
    runtime->sample(logits, vocab, rows, num_rows, max_top, results, top_ids, top_logprobs);
    return 0;
  });
}
