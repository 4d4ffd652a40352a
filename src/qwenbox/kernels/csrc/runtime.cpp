#include "runtime.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "layout.h"
#include "words.h"

namespace qwenbox {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kChunk = size_t(64) << 20;
constexpr int kAttentionRows = 16;     // query rows of one attention task
constexpr int kAttentionTasks = 8;     // that attention cuts into for each thread
constexpr int kGatheredRows = 1024;    // rows that pass through experts at a time, unless one expert has more
constexpr int64_t kElements = 4096;    // of an elementwise task
constexpr int64_t kTaskBytes = 65536;  // weights that one claim of a memory-bound product should read

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

std::string gib(size_t bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1 << 30));
  return text;
}

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

void shape(Activations& a, int rows, int k) {
  a.rows = rows;
  a.k = k;
  a.groups = (k + kGroup - 1) / kGroup;
}

void copy_group(const Activations& from, size_t row, Activations& to, size_t to_row, int g) {
  for (int half = 0; half < 2; ++half)
    memcpy(to.codes + code_index(to.groups, to_row, g) + half * kCodesHalf,
           from.codes + code_index(from.groups, row, g) + half * kCodesHalf, 64);
  to.members[member_index(to.groups, to_row, g)] = from.members[member_index(from.groups, row, g)];
  if (!to.raised) return;
  for (size_t half = 0; half < 2; ++half)
    memcpy(to.raised + raised_index(to, to_row, g) + half * raised_half(to),
           from.raised + raised_index(from, row, g) + half * raised_half(from), 64);
  to.scales[scale_index(to, to_row, g)] = from.scales[scale_index(from, row, g)];
}

bool quantised(const Weight& weight) { return weight.kind > Kind::bf16; }

// 0, or what is wrong: ENODATA where the file ends before.
int read_file(int file, uint64_t offset, uint8_t* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t count = pread(file, data, bytes, off_t(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count ? errno : ENODATA;
    data += count, offset += uint64_t(count), bytes -= size_t(count);
  }
  return 0;
}

// Rounding to nearest, denormals kept, no traps while a batch runs, whatever the host program has set; put back at the end.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
  ~FloatMode() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
  }
  ~FloatMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

}  // namespace

// --- memory ------------------------------------------------------------------------------------------------------

Arena::~Arena() {
  for (const Chunk& chunk : chunks_) munmap(chunk.data, chunk.size);
}

uint8_t* Arena::allocate(size_t bytes, const char* purpose) {
  const size_t size = round_up(std::max<size_t>(bytes, 1), 128);
  if (chunks_.empty() || chunks_.back().size - used_ < size) {
    const size_t chunk = std::max(kChunk, round_up(size, kHugePage));
    void* raw = mmap(nullptr, chunk + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
      fail("no memory for " + std::string(purpose) + ": " + gib(chunk) + " asked for after " + gib(bytes_) + ": " + strerror(errno));
    uint8_t* const begin = static_cast<uint8_t*>(raw);
    uint8_t* const data = begin + (kHugePage - reinterpret_cast<uintptr_t>(raw) % kHugePage) % kHugePage;
    if (data != begin) munmap(begin, size_t(data - begin));
    if (data != begin + kHugePage) munmap(data + chunk, size_t(begin + kHugePage - data));
    madvise(data, chunk, MADV_HUGEPAGE);  // without huge pages everything works, only slower
    chunks_.push_back({data, chunk});
    used_ = 0;
  }
  uint8_t* const result = chunks_.back().data + used_;
  used_ += size;
  bytes_ += size;
  return result;
}

// --- tables ------------------------------------------------------------------------------------------------------

int Runtime::add_weight(int kind, int count, int n, int k) {
  if (kind < 0 || kind >= kKinds) fail("unknown kind of weight " + std::to_string(kind));
  if (count < 1 || n < 1 || k < 1) fail("a weight has no elements");
  const Kind code = Kind(kind);
  const WeightLayout layout = weight_layout(code, n, k);
  const size_t size = layout.panel_bytes * size_t(layout.panels);
  uint8_t* const data = arena_.allocate(size * size_t(count), "weights");
  Stack stack(static_cast<size_t>(count));
  for (size_t i = 0; i < stack.size(); ++i) stack[i] = {code, n, k, layout.panels, layout.groups, data + i * size, layout.panel_bytes};
  stacks_.push_back(std::move(stack));
  packed_.push_back(data);
  return int(stacks_.size()) - 1;
}

const Weight& Runtime::matrix(int handle, int index) const {
  const Stack& matrices = stack(handle);
  if (index < 0 || index >= int(matrices.size())) fail("no such matrix: " + std::to_string(index));
  return matrices[size_t(index)];
}

uint8_t* Runtime::panels_of(int handle, int index) {
  const Weight& weight = matrix(handle, index);
  return packed_[size_t(handle)] + size_t(index) * size_t(weight.panels) * weight.panel_bytes;
}

// body(worker, piece, its bytes) for each piece of what is stored; the last may be shorter. Read and not mapped: a piece passes through the
// second cache, and no page of the file has to be mapped.
template <class Body>
void Runtime::each_piece(const qw_stored& stored, size_t piece_bytes, const Body& body) {
  pool.check();
  std::vector<std::unique_ptr<uint8_t[]>> buffers(stored.data ? 0 : size_t(pool.threads()));
  for (auto& buffer : buffers) buffer.reset(new uint8_t[piece_bytes]);
  std::atomic<int> error{0};
  pool.run(int64_t((stored.bytes + piece_bytes - 1) / piece_bytes), 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const size_t at = size_t(piece) * piece_bytes;
      if (!stored.data) {
        const size_t bytes = std::min<size_t>(piece_bytes, stored.bytes - at);
        const int problem = read_file(stored.file, stored.offset + at, buffers[size_t(worker)].get(), bytes);
        if (problem) return error.store(problem);
      }
      body(worker, piece, stored.data ? stored.data + at : buffers[size_t(worker)].get());
    }
  });
  if (error) fail("a weight could not be read: " + std::string(error == ENODATA ? "the file has become shorter" : strerror(error)));
}

Rounding Runtime::pack_weight(int handle, int index, int first, int last, int kind, const qw_stored& stored) {
  const Weight& weight = matrix(handle, index);
  if (kind < 0 || kind >= kKinds) fail("unknown kind of weight " + std::to_string(kind));
  if (first < 0 || first >= last || last > weight.panels) fail("no such panels: " + std::to_string(first) + " to " + std::to_string(last));
  const size_t row_bytes = raw_row_bytes(Kind(kind), weight.k);
  const int rows = std::min(weight.n, last * kPanel) - first * kPanel;
  if (stored.bytes != row_bytes * size_t(rows))
    fail(std::to_string(rows) + " rows of " + std::to_string(weight.k) + " have " + std::to_string(stored.bytes) + " bytes instead of " +
         std::to_string(row_bytes * size_t(rows)));
  const bool rounds = Kind(kind) != weight.kind;
  if (rounds && weight.kind != Kind::bf16 && weight.kind != Kind::int4 && weight.kind != Kind::int8)
    fail("weights are not rounded to this kind");
  std::vector<std::unique_ptr<uint8_t[]>> rounded(rounds ? size_t(pool.threads()) : 0);
  for (auto& buffer : rounded) buffer.reset(new uint8_t[kPanel * raw_row_bytes(weight.kind, weight.k)]);
  std::atomic<Rounding> result{Rounding::done};
  uint8_t* const panels = panels_of(handle, index);
  each_piece(stored, kPanel * row_bytes, [&](int worker, int64_t panel, const uint8_t* raw) {
    const int count = std::min(kPanel, rows - int(panel) * kPanel);
    if (rounds) {
      uint8_t* const buffer = rounded[size_t(worker)].get();
      const Rounding found = round_rows(kernels, Kind(kind), weight.kind, count, weight.k, raw, buffer);
      if (found != Rounding::done) return result.store(found);
      raw = buffer;
    }
    if (!pack_panels(weight.kind, count, weight.k, raw, 0, 1, panels + size_t(first + panel) * weight.panel_bytes))
      result.store(Rounding::not_finite);
  });
  return result;
}

Rounding Runtime::pack_awq(int handle, int index, int first, int last, const qw_stored& qweight, const uint32_t* qzeros,
                           const uint16_t* scales) {
  const Weight& weight = matrix(handle, index);
  const bool fits = weight.kind == Kind::int4 || weight.kind == Kind::int4_64 || weight.kind == Kind::int4_32;
  if (!fits || weight.n % 8 || weight.k % kGroup) fail("AutoAWQ's words are packed to int4 of whole words and 128 inputs");
  if (first < 0 || first >= last || last > weight.groups) fail("no such groups: " + std::to_string(first) + " to " + std::to_string(last));
  const size_t words = size_t(weight.n) / 8, group_bytes = 4 * kGroup * words;
  if (qweight.bytes != group_bytes * size_t(last - first)) fail("groups of AutoAWQ's words have the wrong number of bytes");
  std::atomic<Rounding> result{Rounding::done};
  uint8_t* const panels = panels_of(handle, index);
  each_piece(qweight, group_bytes, [&](int, int64_t piece, const uint8_t* raw) {
    const size_t group = size_t(first + piece), block = group * size_t(blocks_of(weight.kind));
    if (!qwenbox::pack_awq(weight.kind, weight.n, reinterpret_cast<const uint32_t*>(raw), qzeros + block * words,
                           scales + block * size_t(weight.n), panels + group * (weight.panel_bytes / size_t(weight.groups)),
                           weight.panel_bytes))
      result.store(Rounding::not_finite);
  });
  return result;
}

Rounding Runtime::pack_words(int handle, int index, int first, int last, const qw_stored& words, const qw_word_numbers& numbers) {
  const Weight& weight = matrix(handle, index);
  const int bits = word_bits(weight.kind), inputs = kGroup / blocks_of(weight.kind);
  if (!bits || weight.k % kGroup || numbers.groups < 1 || weight.k % numbers.groups || weight.k / numbers.groups % inputs ||
      (weight.n % (32 / bits) && !numbers.by_rows))
    fail("these words are packed to int4 or 8 bits of whole words, 128 inputs and groups that its blocks divide");
  const int pieces = numbers.by_rows ? weight.panels : weight.groups;
  if (first < 0 || first >= last || last > pieces)
    fail("no such part of a matrix: " + std::to_string(first) + " to " + std::to_string(last));
  const size_t input_bytes = size_t(weight.n) * size_t(bits) / 8, row_bytes = size_t(weight.k) * size_t(bits) / 8;
  const size_t piece_bytes = numbers.by_rows ? kPanel * row_bytes : kGroup * input_bytes;
  const size_t bytes =
      numbers.by_rows ? size_t(std::min(weight.n, last * kPanel) - first * kPanel) * row_bytes : piece_bytes * size_t(last - first);
  if (words.bytes != bytes) fail("words have " + std::to_string(words.bytes) + " bytes instead of " + std::to_string(bytes));
  const WordNumbers all{numbers.by_rows != 0, numbers.groups, numbers.zeros, numbers.plus, numbers.scales};
  std::atomic<Rounding> result{Rounding::done};
  uint8_t* const panels = panels_of(handle, index);
  each_piece(words, piece_bytes, [&](int, int64_t piece, const uint8_t* raw) {
    const int at = first + int(piece);
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(raw);
    const size_t panel_bytes = weight.panel_bytes;
    const bool good = all.by_rows ? pack_word_panel(weight.kind, weight.n, weight.k, at, from, all, panels + size_t(at) * panel_bytes)
                                  : pack_word_group(weight.kind, weight.n, weight.k, at, from, all,
                                                    panels + size_t(at) * (panel_bytes / size_t(weight.groups)), panel_bytes);
    if (!good) result.store(Rounding::not_finite);
  });
  return result;
}

int Runtime::add_vector(const float* data, int n) {
  if (n < 1) fail("a vector has no elements");
  float* const copy = arena_.array<float>(size_t(n), "vectors");
  std::copy(data, data + n, copy);
  vectors_.push_back({copy, n});
  return int(vectors_.size()) - 1;
}

int Runtime::add_rope(const float* cos, const float* sin, int positions, int half) {
  if (positions < 1 || half < 1) fail("a rope table has no elements");
  const size_t count = size_t(positions) * size_t(half);
  float* const copy = arena_.array<float>(2 * count, "rope tables");
  std::copy(cos, cos + count, copy);
  std::copy(sin, sin + count, copy + count);
  ropes_.push_back({copy, copy + count, positions, half});
  return int(ropes_.size()) - 1;
}

const Stack& Runtime::stack(int handle) const {
  if (handle < 0 || handle >= int(stacks_.size())) fail("no such weight: " + std::to_string(handle));
  return stacks_[size_t(handle)];
}

const Vector& Runtime::vector(int handle) const {
  if (handle < 0 || handle >= int(vectors_.size())) fail("no such vector: " + std::to_string(handle));
  return vectors_[size_t(handle)];
}

const Rope& Runtime::rope(int handle) const {
  if (handle < 0 || handle >= int(ropes_.size())) fail("no such rope table: " + std::to_string(handle));
  return ropes_[size_t(handle)];
}

static size_t page_elements(int head_dim) { return size_t(2) * kPageTokens * size_t(head_dim); }  // of one layer and kv head

// --- compilation -------------------------------------------------------------------------------------------------

Program::Program(Runtime& runtime, const qw_op* ops, int num_ops, const qw_value* values, int num_values, int max_tokens, int max_logits,
                 int num_pages, const Program* pages_of)
    : runtime_(runtime),
      kernels_(runtime.kernels),
      pool_(runtime.pool),
      max_tokens_(max_tokens),
      max_logits_(max_logits),
      num_pages_(num_pages),
      num_ids_(1 << 30),
      max_positions_(1 << 30) {
  if (max_tokens < 1 || max_logits < 1 || num_pages < 0) fail("a program needs room for at least one token and one row of logits");
  if (num_ops < 1 || num_values < 1) fail("a program without operations");
  if (pages_of && pages_of->num_pages_ != num_pages) fail("pages are shared with a program that has another number of them");
  compile(ops, num_ops, values, num_values, pages_of);
  allocate();
  step_seconds_.resize(steps_.size());
}

void Program::compile(const qw_op* ops, int num_ops, const qw_value* values, int num_values, const Program* pages_of) {
  std::vector<bool> written(size_t(num_values), false);
  const auto expect = [](bool holds, int op, const char* what) {
    if (!holds) fail("operation " + std::to_string(op) + ": " + what);
  };
  const auto slot = [&](int value, int op) {
    expect(value >= 0 && value < num_values, op, "no such value");
    const qw_value& v = values[value];
    expect(v.width > 0 && v.buffer >= 0 && v.buffer < num_values, op, "a value without width or buffer");
    return Slot{v.width, v.narrow != 0, v.buffer};
  };
  int rounded = -1;  // the value whose codes are in codes_
  int codes_width = 0;
  bool done = false;
  for (int i = 0; i < num_ops; ++i) {
    const qw_op& op = ops[i];
    expect(!done, i, "comes after the output");
    Step step{};
    const int inputs = op.code == QW_EMBED ? 0 : op.code == QW_ATTENTION ? 3 : op.code == QW_SILU_MUL || op.code == QW_ADD ? 2 : 1;
    for (int j = 0; j < inputs; ++j) {
      step.inputs[j] = slot(op.inputs[j], i);
      expect(written[size_t(op.inputs[j])], i, "reads a value that nothing wrote");
    }
    const Slot& x = step.inputs[0];
    if (op.code == QW_OUTPUT) {
      expect(x.narrow && !steps_.empty() && steps_.back().output.buffer == x.buffer && steps_.back().output.narrow, i,
             "the output must be the last value and hold only the rows of logits");
      Step& last = steps_.back();
      last.output.buffer = kToLogits;
      num_logits_ = last.output.width;
      for (LinearItem& item : last.linears)
        if (item.output.buffer == x.buffer) item.output.buffer = kToLogits;
      if (op.ints[0] && last.linears.size() == 1 && Sketch::pays(*last.linears[0].weight) && !last.linears[0].bias) {
        const Weight& head = *last.linears[0].weight;
        sketch_ = pages_of && pages_of->steps_.back().linears.size() == 1 && pages_of->steps_.back().linears[0].weight == &head
                      ? pages_of->sketch_
                      : std::make_shared<Sketch>(kernels_, head, arena_.allocate(Sketch::bytes(head), "the sketch of the head"), pool_);
        last.sketch = sketch_.get();
      }
      done = true;
      continue;
    }
    step.output = slot(op.output, i);
    expect(!written[size_t(op.output)], i, "writes a value twice");
    const Slot& y = step.output;
    expect(op.code == QW_LOGITS_ROWS ? !x.narrow && y.narrow
           : inputs == 0             ? !y.narrow
                                     : y.narrow == x.narrow,
           i, "mixes tokens and logit rows");
    const auto round = [&](int k) {
      if (rounded == op.inputs[0]) return;
      Step quantize{};
      quantize.code = Code::quantize;
      quantize.inputs[0] = x;
      steps_.push_back(quantize);
      rounded = op.inputs[0];
      codes_width = std::max(codes_width, k);
    };
    switch (op.code) {
      case QW_EMBED: {
        step.code = Code::embed;
        const Stack& table = runtime_.stack(op.tables[0]);
        step.table = &table[0];
        expect(table.size() == 1 && step.table->k == y.width, i, "embed: the width is not that of the table");
        num_ids_ = std::min(num_ids_, step.table->n);
        break;
      }
      case QW_LINEAR: {
        step.code = Code::linear;
        const Stack& stack = runtime_.stack(op.tables[0]);
        const Weight& weight = stack[0];
        expect(stack.size() == 1 && weight.k == x.width && weight.n == y.width, i, "linear: the widths are not those of the matrix");
        const float* bias = nullptr;
        if (op.tables[1] >= 0) {
          expect(runtime_.vector(op.tables[1]).n == y.width, i, "linear: the bias has another length");
          bias = runtime_.vector(op.tables[1]).data;
        }
        if (quantised(weight)) round(weight.k);
        // Matrices that read one input join: one barrier instead of several, and small ones fill the gaps that big ones leave.
        if (!steps_.empty() && steps_.back().code == Code::linear && i > 0 && ops[i - 1].inputs[0] == op.inputs[0]) {
          steps_.back().linears.push_back({&weight, bias, y});
          steps_.back().output = y;
          written[size_t(op.output)] = true;
          continue;
        }
        step.linears.push_back({&weight, bias, y});
        break;
      }
      case QW_RMS_NORM: {
        step.code = Code::rms_norm;
        const Vector& vector = runtime_.vector(op.tables[0]);
        step.vector = vector.data;
        step.segment = vector.n;
        step.eps = op.eps;
        expect(x.width == y.width && x.width % vector.n == 0, i, "rms_norm: the width is not a multiple of the weight's");
        break;
      }
      case QW_ROPE: {
        step.code = Code::rope;
        step.rope = &runtime_.rope(op.tables[0]);
        step.segment = op.ints[0];
        expect(step.segment == 2 * step.rope->half && x.width == y.width && x.width % step.segment == 0 && !x.narrow, i,
               "rope: the width is not a multiple of the head, or the table is of another head");
        max_positions_ = std::min(max_positions_, step.rope->positions);
        break;
      }
      case QW_ATTENTION: {
        step.code = Code::attention;
        step.heads = op.ints[1];
        step.kv_heads = op.ints[2];
        step.segment = op.ints[3];
        const int d = step.segment;
        expect(d > 0 && d % 16 == 0 && d <= 1024 && step.heads > 0 && step.kv_heads > 0 && step.heads % step.kv_heads == 0, i,
               "attention: heads must be a multiple of the kv heads, the head dimension a multiple of 16");
        expect(x.width == step.heads * d && y.width == x.width && step.inputs[1].width == step.kv_heads * d &&
                   step.inputs[2].width == step.inputs[1].width && !x.narrow && !step.inputs[1].narrow && !step.inputs[2].narrow,
               i, "attention: the widths are not those of the heads");
        if (pages_of) {
          const Step* const other = steps_.size() < pages_of->steps_.size() ? &pages_of->steps_[steps_.size()] : nullptr;
          expect(other && other->code == Code::attention && other->kv_heads == step.kv_heads && other->segment == d, i,
                 "attention: the pages are of another program");
        }
        step.kv_begin = kv_cluster_;
        kv_cluster_ += size_t(step.kv_heads) * kPageCluster * page_elements(d);
        break;
      }
      case QW_SILU_MUL:
      case QW_ADD:
        step.code = op.code == QW_ADD ? Code::add : Code::silu_mul;
        expect(x.width == y.width && step.inputs[1].width == y.width && step.inputs[1].narrow == y.narrow, i, "the widths differ");
        break;
      case QW_MOE: {
        step.code = Code::moe;
        step.moe = compile_moe(op, x, y);
        const Moe& m = step.moe;
        if (quantised(*m.router) || quantised((*m.gate)[0]) ||
            (m.shared_gate && (quantised(*m.shared_gate) || quantised(*m.shared_router))))
          round(x.width);
        break;
      }
      case QW_LOGITS_ROWS:
        step.code = Code::logits_rows;
        expect(x.width == y.width, i, "logits_rows: the widths differ");
        break;
      default:
        fail("operation " + std::to_string(i) + ": unknown code " + std::to_string(op.code));
    }
    written[size_t(op.output)] = true;
    steps_.push_back(std::move(step));
  }
  if (!done) fail("a program without output");
  if (pages_of && pages_of->kv_cluster_ != kv_cluster_) fail("the pages are of a program with other layers");
  if (pages_of)
    kv_ = pages_of->kv_;
  else if (kv_cluster_)
    kv_ = kv_arena_.array<uint16_t>(round_up(size_t(num_pages_), kPageCluster) / kPageCluster * kv_cluster_, "the KV cache");

  buffer_floats_.assign(size_t(num_values), 0);
  for (int i = 0; i < num_values; ++i) {
    const qw_value& v = values[i];
    if (!written[size_t(i)] || (v.narrow && i == ops[num_ops - 1].inputs[0])) continue;
    size_t& floats = buffer_floats_[size_t(v.buffer)];
    floats = std::max(floats, size_t(v.width) * size_t(v.narrow ? max_logits_ : max_tokens_));
  }
  if (codes_width) codes_ = activations(std::max(max_tokens_, max_logits_), codes_width);
}

Program::Moe Program::compile_moe(const qw_op& op, const Slot& x, const Slot& y) {
  Moe m;
  m.router = &runtime_.stack(op.tables[0])[0];
  m.gate = &runtime_.stack(op.tables[1]);
  m.up = &runtime_.stack(op.tables[2]);
  m.down = &runtime_.stack(op.tables[3]);
  m.top_k = op.ints[0];
  m.normalise = op.ints[1] != 0;
  const Weight &gate = (*m.gate)[0], &up = (*m.up)[0], &down = (*m.down)[0];
  const size_t count = m.gate->size();
  const auto expect = [](bool holds, const char* what) {
    if (!holds) fail(std::string("moe: ") + what);
  };
  expect(!x.narrow && x.width == y.width, "the input and the output must have one width and a row a token");
  expect(m.up->size() == count && m.down->size() == count && size_t(m.router->n) == count,
         "router, gate, up and down differ in the number of experts");
  expect(m.router->k == x.width && gate.k == x.width && up.k == x.width && down.n == x.width && up.n == gate.n && down.k == gate.n,
         "the widths of the matrices do not fit");
  expect(quantised(gate) == quantised(up), "gate and up must both be quantised or both not");
  expect(m.top_k >= 1 && size_t(m.top_k) <= count, "top_k must lie between 1 and the number of experts");
  moe_.width = std::max(moe_.width, x.width);
  moe_.inner = std::max(moe_.inner, gate.n);
  moe_.experts = std::max(moe_.experts, int(count));
  moe_.top_k = std::max(moe_.top_k, m.top_k);
  if (op.tables[4] >= 0) {
    m.shared_gate = &runtime_.stack(op.tables[4])[0];
    m.shared_up = &runtime_.stack(op.tables[5])[0];
    m.shared_down = &runtime_.stack(op.tables[6])[0];
    m.shared_router = &runtime_.stack(op.tables[7])[0];
    expect(m.shared_gate->k == x.width && m.shared_up->k == x.width && m.shared_up->n == m.shared_gate->n &&
               m.shared_down->k == m.shared_gate->n && m.shared_down->n == x.width && m.shared_router->k == x.width &&
               m.shared_router->n == 1,
           "the widths of the shared expert do not fit");
    expect(quantised(*m.shared_gate) == quantised(*m.shared_up), "gate and up of the shared expert must both be quantised or both not");
    moe_.shared_inner = std::max(moe_.shared_inner, m.shared_gate->n);
  }
  return m;
}

Activations Program::activations(int rows, int k) {
  Activations a{};
  a.rows = rows;
  a.k = k;
  a.groups = (k + kGroup - 1) / kGroup;
  const size_t padded = (size_t(rows) + 15) / 16 * 16;
  a.codes = arena_.array<int8_t>(padded * size_t(a.groups) * kGroup, "activations");
  a.members = arena_.array<RowGroup>(padded * size_t(a.groups), "activations");
  if (kernels_.raised) {
    a.raised = arena_.array<uint8_t>((padded + 1) * size_t(a.groups) * kGroup, "activations");
    a.scales = arena_.array<float>((padded + 1) * size_t(a.groups), "activations");
  }
  return a;
}

void Program::allocate() {
  for (size_t floats : buffer_floats_) buffers_.push_back(floats ? arena_.array<float>(floats, "activations") : nullptr);
  size_t attention = 0;
  for (const Step& step : steps_)
    if (step.code == Code::attention) {
      attention = std::max(attention, kernels_.attention_scratch(kAttentionRows, step.heads / step.kv_heads, step.segment));
      kv_heads_ = std::max(kv_heads_, step.kv_heads);
      partial_floats_ = std::max(partial_floats_, kernels_.attention_partial(1, step.heads / step.kv_heads, step.segment));
    }
  if (kv_heads_) {  // room for as many rows as a task has, at the longest context
    const int64_t context = std::min<int64_t>(max_positions_, int64_t(num_pages_) * kPageTokens);
    partials_floats_ = size_t(context / kBlockTokens + 1) * size_t(kv_heads_) * kAttentionRows * partial_floats_;
    partials_ = arena_.array<float>(partials_floats_, "attention");
    left_ = std::make_unique<std::atomic<int>[]>(size_t(max_tokens_) * size_t(kv_heads_));
  }
  const size_t linear = kernels_.linear_scratch(std::max({max_tokens_, max_logits_, kGatheredRows}));
  for (int i = 0; i < pool_.threads(); ++i) {
    linear_scratch_.push_back(arena_.allocate(linear, "scratch"));
    attention_scratch_.push_back(arena_.array<float>(attention, "scratch"));
  }
  positions_.resize(size_t(max_tokens_));
  if (moe_.experts) {
    MoeBuffers& m = moe_;
    const size_t tokens = size_t(max_tokens_), slots = tokens * size_t(m.top_k);
    const size_t all = slots + 16 * std::min(size_t(m.experts), slots);
    m.capacity = int(std::max(round_up(tokens, 16), std::min(round_up(all, 16), size_t(kGatheredRows))));
    const size_t rows = size_t(m.capacity), width = size_t(m.width), inner = size_t(m.inner), shared = size_t(m.shared_inner);
    const char* purpose = "experts";
    m.router = arena_.array<float>(tokens * size_t(m.experts), purpose);
    m.weights = arena_.array<float>(slots, purpose);
    m.chosen = arena_.array<int32_t>(slots, purpose);
    m.place = arena_.array<int32_t>(slots, purpose);
    m.gathered = arena_.array<float>(rows * width, purpose);
    m.gate = arena_.array<float>(rows * inner, purpose);
    m.up = arena_.array<float>(rows * inner, purpose);
    m.down = arena_.array<float>(rows * width, purpose);
    m.input = activations(m.capacity, m.width);
    m.hidden = activations(m.capacity, m.inner);
    if (m.shared_inner) {
      m.shared_gate = arena_.array<float>(tokens * shared, purpose);
      m.shared_up = arena_.array<float>(tokens * shared, purpose);
      m.shared_down = arena_.array<float>(tokens * width, purpose);
      m.shared_router = arena_.array<float>(tokens, purpose);
      m.shared_hidden = activations(max_tokens_, m.shared_inner);
    }
  }
}

// --- running -----------------------------------------------------------------------------------------------------

void Program::check(const qw_batch& batch, int first) const {
  const auto text = [](int64_t value) { return std::to_string(value); };
  if (first < 0 || first > steps()) fail("there is no operation " + text(first) + " to start from");
  if (batch.num_tokens < 1 || batch.num_tokens > max_tokens_)
    fail("a batch of " + text(batch.num_tokens) + " tokens; room is for 1 to " + text(max_tokens_));
  if (batch.num_logits < 0 || batch.num_logits > max_logits_)
    fail("a batch of " + text(batch.num_logits) + " logit rows; room is for " + text(max_logits_));
  if (batch.largest < 0 || batch.largest > num_logits_)
    fail("the largest of the first " + text(batch.largest) + " logits is wanted, but there are " + text(num_logits_));
  for (int i = 0; i < batch.num_tokens; ++i)
    if (batch.ids[i] < 0 || batch.ids[i] >= num_ids_)
      fail("token id " + text(batch.ids[i]) + " in row " + text(i) + " is not below " + text(num_ids_));
  for (int i = 0; i < batch.num_logits; ++i)
    if (batch.logits_rows[i] < 0 || batch.logits_rows[i] >= batch.num_tokens)
      fail("logits of row " + text(batch.logits_rows[i]) + " are wanted, but the batch has " + text(batch.num_tokens) + " rows");
  int64_t row = 0;
  for (int s = 0; s < batch.num_spans; ++s) {
    const qw_span& span = batch.spans[s];
    const std::string name = "span " + text(s);
    if (span.start != row || span.length < 1)
      fail(name + " starts at row " + text(span.start) + ": spans must cover the rows in order, from row " + text(row));
    row += span.length;
    const int64_t end = int64_t(span.position) + span.length;
    if (span.position < 0 || end > max_positions_)
      fail(name + " ends at position " + text(end) + ", but there are " + text(max_positions_));
    if (int64_t(span.num_pages) * kPageTokens < end) fail(name + " has " + text(span.num_pages) + " pages for " + text(end) + " positions");
    for (int i = 0; i < span.num_pages; ++i)
      if (span.pages[i] < 0 || span.pages[i] >= num_pages_) fail(name + " names page " + text(span.pages[i]) + " of " + text(num_pages_));
  }
  if (row != batch.num_tokens) fail("the spans hold " + text(row) + " rows, the batch " + text(batch.num_tokens));
}

int Program::run(const qw_batch& batch, int first, const int32_t* cancel, double deadline, float* logits) {
  pool_.check();
  check(batch, first);
  const FloatMode mode;
  batch_ = &batch;
  logits_ = logits;
  for (int s = 0; s < batch.num_spans; ++s)
    for (int i = 0; i < batch.spans[s].length; ++i) positions_[size_t(batch.spans[s].start + i)] = batch.spans[s].position + i;
  plan_attention();
  double now = double(monotonic_nanoseconds()) * 1e-9;
  for (int i = first; i < steps(); ++i) {
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED)) return i;
    // So pauses come as often a little before the deadline as behind it. The first runs anyway: whatever it takes, it goes on.
    if (deadline > 0 && now + (i > first ? step_seconds_[size_t(i)] / 2 : 0) >= deadline) return i;
    execute(steps_[size_t(i)]);
    const double after = double(monotonic_nanoseconds()) * 1e-9;
    step_seconds_[size_t(i)] = after - now;
    now = after;
  }
  return steps();
}

void Program::execute(const Step& step) {
  const int n = rows(step.output);
  switch (step.code) {
    case Code::embed:
      return embed(step);
    case Code::linear: {
      Target targets[8];
      const size_t count = step.linears.size();
      const Input input{data(step.inputs[0]), size_t(step.inputs[0].width), &codes_};
      // Several rows share the reading of the whole head and rarely agree on what to leave out: no gain with 2 rows, a loss with 4.
      if (step.sketch && batch_->largest && n == 1 &&
          step.sketch->largest(kernels_, pool_, codes_, batch_->largest, logits_, linear_scratch_.data()))
        return;
      for (size_t begin = 0; begin < count; begin += 8) {
        const size_t part = std::min<size_t>(8, count - begin);
        for (size_t i = 0; i < part; ++i) {
          const LinearItem& item = step.linears[begin + i];
          targets[i] = {item.weight, item.bias, data(item.output), size_t(item.output.width)};
        }
        linears(targets, int(part), input, n);
      }
      return;
    }
    case Code::quantize:
    case Code::rms_norm:
    case Code::rope:
    case Code::silu_mul:
    case Code::add:
      return run_rows(step);
    case Code::attention:
      return attend(step);
    case Code::moe:
      return moe(step);
    case Code::logits_rows: {
      const size_t width = size_t(step.output.width);
      for (int i = 0; i < n; ++i) {
        const float* const x = data(step.inputs[0]) + size_t(batch_->logits_rows[i]) * width;
        std::copy(x, x + width, data(step.output) + size_t(i) * width);
      }
      return;
    }
  }
}

void Program::embed(const Step& step) {
  float* const out = data(step.output);
  pool_.run(batch_->num_tokens, 16, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels_.weight_row(*step.table, batch_->ids[i], out + i * step.output.width);
  });
}

void Program::quantize(const float* x, size_t stride, int rows, Activations& out) {
  shape(out, rows, int(stride));
  pool_.run(rows, 4, [&](int, int64_t begin, int64_t end) { kernels_.quantize_rows(x, stride, int(begin), int(end), out); });
}

void Program::apply(const Target& target, const Input& input, int row_begin, int row_end, int panel_begin, int panel_end, int worker) {
  if (quantised(*target.weight))
    kernels_.linear(*target.weight, *input.codes, row_begin, row_end, panel_begin, panel_end, target.bias, target.out, target.stride,
                    linear_scratch_[size_t(worker)]);
  else
    kernels_.linear_dense(*target.weight, input.x, input.stride, row_begin, row_end, panel_begin, panel_end, target.bias, target.out,
                          target.stride);
}

void Program::linears(const Target* targets, int count, const Input& input, int rows) {
  if (!rows) return;
  int64_t panels = 0;
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    panels += targets[i].weight->panels;
    bytes += targets[i].weight->panel_bytes * size_t(targets[i].weight->panels);
  }
  // Whole columns of rows where there are panels enough for everybody: each panel is then read once.
  const int64_t wanted = 8 * pool_.threads();
  const int64_t blocks = std::min<int64_t>((rows + 15) / 16, std::max<int64_t>(1, wanted / panels));
  const int64_t block_rows = int64_t(round_up(size_t((rows + blocks - 1) / blocks), 16));
  const int64_t few = int64_t(kTaskBytes / (bytes / size_t(panels) + 1));
  const int64_t together = rows > 64 ? kernels_.panels : rows > 8 ? 1 : few;
  const int64_t grain = std::max<int64_t>(1, std::min(together, panels / (rows > 64 ? wanted / 2 : wanted)));
  pool_.run(blocks * panels, grain, [&](int worker, int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t block = begin / panels;
      int64_t panel = begin % panels, left = std::min(end - begin, panels - panel);
      const int row_begin = int(std::min<int64_t>(block * block_rows, rows)),
                row_end = int(std::min<int64_t>((block + 1) * block_rows, rows));
      begin += left;
      for (int i = 0; left > 0; ++i) {
        const int64_t own = targets[i].weight->panels;
        if (panel < own) {
          const int64_t part = std::min(left, own - panel);
          if (row_begin < row_end) apply(targets[i], input, row_begin, row_end, int(panel), int(panel + part), worker);
          left -= part;
          panel += part;
        }
        panel -= own;
      }
    }
  });
}

void Program::run_rows(const Step& step) {
  const Slot& x = step.inputs[0];
  if (step.code == Code::quantize) shape(codes_, rows(x), x.width);
  pool_.run(rows(x), std::max<int64_t>(1, kElements / x.width), [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) run_row(step, size_t(row));
  });
}

void Program::run_row(const Step& step, size_t row) {
  const size_t width = size_t(step.inputs[0].width), at = row * width;
  const float* const x = data(step.inputs[0]) + at;
  float* const out = step.code == Code::quantize ? nullptr : data(step.output) + at;
  switch (step.code) {
    case Code::quantize:
      return kernels_.quantize_rows(x - at, width, int(row), int(row) + 1, codes_);
    case Code::rms_norm:
      for (size_t i = 0; i < width; i += size_t(step.segment)) kernels_.rms_norm(x + i, step.vector, step.segment, step.eps, out + i);
      return;
    case Code::rope: {
      const size_t angles = size_t(positions_[row]) * size_t(step.rope->half);
      return kernels_.rope(x, step.rope->cos + angles, step.rope->sin + angles, int(width) / step.segment, step.segment, out);
    }
    case Code::silu_mul:
      return kernels_.silu_mul(x, data(step.inputs[1]) + at, width, out);
    case Code::add:
      return kernels_.add(x, data(step.inputs[1]) + at, width, out);
    default:
      return;
  }
}

void Program::multiply(const float* gate, const float* up, size_t n, float* out) {
  pool_.run(int64_t(n), kElements,
            [&](int, int64_t begin, int64_t end) { kernels_.silu_mul(gate + begin, up + begin, size_t(end - begin), out + begin); });
}

// --- attention ---------------------------------------------------------------------------------------------------

// Tasks of about equal length: up to 16 rows of a span each, over a part of the context where there are few rows.
void Program::plan_attention() {
  attention_rows_.clear();
  attention_parts_.clear();
  store_first_ = false;
  if (!kv_heads_) return;
  // A block costs the reading of its keys and values and as much again for each row.
  const auto cost = [](const Rows& r) { return int64_t(r.end - r.begin) + 1; };
  int64_t total = 0;
  for (int s = 0; s < batch_->num_spans; ++s) {
    const qw_span& span = batch_->spans[s];
    store_first_ |= span.length > kAttentionRows;
    for (int end = span.length; end > 0; end -= kAttentionRows) {  // the longest context first
      const int blocks = (span.position + end + kBlockTokens - 1) / kBlockTokens;
      attention_rows_.push_back({s, std::max(0, end - kAttentionRows), end, blocks, 1, nullptr, nullptr});
      total += cost(attention_rows_.back()) * blocks;
    }
  }
  const int64_t wanted = total * kv_heads_ / (kAttentionTasks * pool_.threads()) + 1;
  float* partials = partials_;
  std::atomic<int>* left = left_.get();
  for (Rows& r : attention_rows_) {
    const int index = int(&r - attention_rows_.data()), length = int(std::max<int64_t>(1, wanted / cost(r)));
    const int parts = (r.blocks + length - 1) / length;
    const size_t floats = size_t(kv_heads_) * size_t(r.blocks) * size_t(r.end - r.begin) * partial_floats_;
    if (pool_.threads() == 1 || parts < 2 || floats > partials_floats_ - size_t(partials - partials_)) {
      attention_parts_.push_back({index, 0, r.blocks});
      continue;
    }
    r.parts = parts;
    r.partials = partials;
    r.left = left;
    partials += floats;
    for (int head = 0; head < kv_heads_; ++head) *left++ = parts;
    for (int i = 0; i < parts; ++i)
      attention_parts_.push_back({index, int(int64_t(r.blocks) * i / parts), int(int64_t(r.blocks) * (i + 1) / parts)});
  }
}

KvPages Program::pages(const Step& step, int head) const {
  const size_t page = page_elements(step.segment);
  return {kv_ + step.kv_begin + size_t(head) * kPageCluster * page, page, kv_cluster_};
}

// Keys and values of one kv head of a span go to their pages, those at positions [begin, end); a page whose first token is written starts
// as zeros.
void Program::store(const Step& step, const qw_span& span, int head, int begin, int end) {
  const int d = step.segment, first = std::max(begin, span.position), last = std::min(end, span.position + span.length);
  const size_t width = size_t(step.inputs[1].width);
  const KvPages kv = pages(step, head);
  for (int position = first; position < last; ++position) {
    const size_t from = size_t(span.start + position - span.position) * width + size_t(head) * size_t(d);
    const int at = position % kPageTokens;
    uint16_t* const page = kv[span.pages[position / kPageTokens]];
    if (at == 0) std::fill(page, page + page_elements(d), uint16_t(0));
    kernels_.store_kv(data(step.inputs[1]) + from, data(step.inputs[2]) + from, d, at, page, page + page_elements(d) / 2);
  }
}

void Program::copy_page(int from, int to, int num_tokens) {
  const auto text = [](int value) { return std::to_string(value); };
  if (std::min(from, to) < 0 || std::max(from, to) >= num_pages_ || from == to || num_tokens < 1 || num_tokens > kPageTokens)
    fail("page " + text(from) + " of " + text(num_pages_) + " cannot give " + text(num_tokens) + " tokens to page " + text(to));
  for (const Step& step : steps_) {
    if (step.code != Code::attention) continue;
    const size_t elements = page_elements(step.segment);
    const std::vector<float> zeros(size_t(step.segment));
    for (int head = 0; head < step.kv_heads; ++head) {
      const KvPages kv = pages(step, head);
      uint16_t* const page = kv[to];
      std::copy_n(kv[from], elements, page);
      for (int at = num_tokens; at < kPageTokens; ++at)
        kernels_.store_kv(zeros.data(), zeros.data(), step.segment, at, page, page + elements / 2);
    }
  }
}

void Program::attend(const Step& step) {
  const int d = step.segment, group = step.heads / step.kv_heads, kv_heads = step.kv_heads;
  if (store_first_)
    for (int s = 0; s < batch_->num_spans; ++s) {
      const qw_span& span = batch_->spans[s];
      const int page = span.position / kPageTokens, pages = (span.position + span.length - 1) / kPageTokens + 1 - page;
      pool_.run(int64_t(pages) * kv_heads, 2, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int at = (page + int(i / kv_heads)) * kPageTokens;
          store(step, span, int(i % kv_heads), at, at + kPageTokens);
        }
      });
    }
  pool_.run(int64_t(attention_parts_.size()) * kv_heads, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Part& part = attention_parts_[size_t(i / kv_heads)];
      const Rows& rows = attention_rows_[size_t(part.rows)];
      const qw_span& span = batch_->spans[rows.span];
      const int head = int(i % kv_heads);
      if (!store_first_) store(step, span, head, part.begin * kBlockTokens, part.end * kBlockTokens);
      AttentionTask task{};
      task.q_stride = task.out_stride = size_t(step.output.width);
      const size_t first = size_t(span.start) * task.q_stride + size_t(head) * size_t(group) * size_t(d);
      task.q = data(step.inputs[0]) + first;
      task.out = data(step.output) + first;
      task.row_begin = rows.begin;
      task.row_end = rows.end;
      task.position = span.position;
      task.group = group;
      task.head_dim = d;
      task.scale = float(1.0 / std::sqrt(double(d)));
      task.pages = span.pages;
      task.kv = pages(step, head);
      task.scratch = attention_scratch_[size_t(worker)];
      if (!rows.partials) {
        kernels_.attention(task);
        continue;
      }
      const size_t partial = kernels_.attention_partial(rows.end - rows.begin, group, d);
      float* const partials = rows.partials + size_t(head) * size_t(rows.blocks) * partial;
      kernels_.attention_blocks(task, part.begin, part.end, partials + size_t(part.begin) * partial);
      std::atomic<int>& left = rows.left[head];
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        kernels_.attention_merge(task, partials);
        left.store(rows.parts, std::memory_order_relaxed);
      }
    }
  });
}

// --- mixture of experts ------------------------------------------------------------------------------------------

void Program::moe(const Step& step) {
  const Moe& m = step.moe;
  const int tokens = rows(step.output), count = int(m.gate->size());
  const size_t width = size_t(step.output.width);
  const Input input{data(step.inputs[0]), width, &codes_};
  const Target router{m.router, nullptr, moe_.router, size_t(count)};
  linears(&router, 1, input, tokens);
  route(m, tokens);
  std::fill(data(step.output), data(step.output) + size_t(tokens) * width, 0.0f);

  // Experts in ascending order, as many at a time as the gathered buffers hold; each expert's rows start at a multiple of 16.
  std::vector<int> loads(static_cast<size_t>(count), 0);
  for (int i = 0; i < tokens * m.top_k; ++i) ++loads[size_t(moe_.chosen[i])];
  segments_.clear();
  int used = 0;
  for (int e = 0; e < count; ++e) {
    if (!loads[size_t(e)]) continue;
    const int padded = int(round_up(size_t(loads[size_t(e)]), 16));
    if (used + padded > moe_.capacity) {
      experts(m, segments_.data(), int(segments_.size()), step);
      segments_.clear();
      used = 0;
    }
    segments_.push_back({e, used, loads[size_t(e)]});
    used += padded;
  }
  experts(m, segments_.data(), int(segments_.size()), step);
  if (m.shared_gate) shared_expert(m, step, tokens);
}

// The k most probable experts of every token and their weights, stored by ascending expert.
void Program::route(const Moe& m, int tokens) {
  const int count = int(m.gate->size()), k = m.top_k;
  pool_.run(tokens, 8, [&](int, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* const p = moe_.router + t * count;
      kernels_.softmax(p, count, p);
      int32_t* const chosen = moe_.chosen + t * k;
      float* const weights = moe_.weights + t * k;
      float total = 0;
      for (int j = 0; j < k; ++j) {
        int best = -1;
        for (int e = 0; e < count; ++e) {
          const bool taken = std::find(chosen, chosen + j, e) != chosen + j;
          if (!taken && (best < 0 || p[e] > p[best])) best = e;
        }
        chosen[j] = best;
        total = j ? total + p[best] : p[best];
      }
      std::sort(chosen, chosen + k);
      for (int j = 0; j < k; ++j) weights[j] = m.normalise ? p[chosen[j]] / total : p[chosen[j]];
    }
  });
}

void Program::experts(const Moe& m, const Segment* segments, int count, const Step& step) {
  if (!count) return;
  const int tokens = rows(step.output), k = m.top_k, first = segments[0].expert, last = segments[count - 1].expert;
  const size_t width = size_t(step.output.width), inner = size_t((*m.gate)[0].n);
  const float* const x = data(step.inputs[0]);
  const bool input_codes = quantised((*m.gate)[0]), hidden_codes = quantised((*m.down)[0]);

  // Rows of an expert keep the order of their tokens.
  std::vector<int> next(static_cast<size_t>(last + 1), 0);
  for (int i = 0; i < count; ++i) next[size_t(segments[i].expert)] = segments[i].begin;
  const auto here = [&](int expert) { return expert >= first && expert <= last; };
  for (int i = 0; i < tokens * k; ++i)
    if (here(moe_.chosen[i])) moe_.place[i] = next[size_t(moe_.chosen[i])]++;

  shape(moe_.input, moe_.capacity, int(width));
  shape(moe_.hidden, moe_.capacity, int(inner));
  const int groups = moe_.input.groups;
  pool_.run(int64_t(tokens) * k, 8, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!here(moe_.chosen[i])) continue;
      const size_t to = size_t(moe_.place[i]), from = size_t(i / k);
      if (!input_codes) {
        std::copy(x + from * width, x + (from + 1) * width, moe_.gathered + to * width);
        continue;
      }
      for (int g = 0; g < groups; ++g) copy_group(codes_, from, moe_.input, to, g);
    }
  });

  const Input gathered{moe_.gathered, width, &moe_.input}, hidden{moe_.gate, inner, &moe_.hidden};
  const auto product = [&](const Stack& stack, const Input& input, float* out, int segment, int64_t panel, int worker) {
    const Segment& s = segments[segment];
    const Target target{&stack[size_t(s.expert)], nullptr, out, size_t(stack[0].n)};
    apply(target, input, s.begin, s.begin + s.rows, int(panel), int(panel) + 1, worker);
  };
  const int64_t up_panels = (*m.up)[0].panels, down_panels = (*m.down)[0].panels;
  pool_.run(count * 2 * up_panels, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i % (2 * up_panels);
      const bool up = panel >= up_panels;
      product(up ? *m.up : *m.gate, gathered, up ? moe_.up : moe_.gate, int(i / (2 * up_panels)), up ? panel - up_panels : panel, worker);
    }
  });
  pool_.run(count, 1, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t from = size_t(segments[i].begin) * inner;
      kernels_.silu_mul(moe_.gate + from, moe_.up + from, size_t(segments[i].rows) * inner, moe_.gate + from);
      if (hidden_codes) kernels_.quantize_rows(moe_.gate, inner, segments[i].begin, segments[i].begin + segments[i].rows, moe_.hidden);
    }
  });
  pool_.run(count * down_panels, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) product(*m.down, hidden, moe_.down, int(i / down_panels), i % down_panels, worker);
  });
  float* const out = data(step.output);
  pool_.run(tokens, 4, [&](int, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = t * k; j < (t + 1) * k; ++j)
        if (here(moe_.chosen[j])) kernels_.axpy(moe_.weights[j], moe_.down + size_t(moe_.place[j]) * width, width, out + size_t(t) * width);
  });
}

void Program::shared_expert(const Moe& m, const Step& step, int tokens) {
  const size_t width = size_t(step.output.width), inner = size_t(m.shared_gate->n);
  const Input input{data(step.inputs[0]), width, &codes_};
  const Target first[] = {{m.shared_gate, nullptr, moe_.shared_gate, inner},
                          {m.shared_up, nullptr, moe_.shared_up, inner},
                          {m.shared_router, nullptr, moe_.shared_router, 1}};
  linears(first, 3, input, tokens);
  multiply(moe_.shared_gate, moe_.shared_up, size_t(tokens) * inner, moe_.shared_gate);
  if (quantised(*m.shared_down)) quantize(moe_.shared_gate, inner, tokens, moe_.shared_hidden);
  const Target down{m.shared_down, nullptr, moe_.shared_down, width};
  linears(&down, 1, {moe_.shared_gate, inner, &moe_.shared_hidden}, tokens);
  float* const out = data(step.output);
  pool_.run(tokens, 4, [&](int, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      kernels_.axpy(kernels_.sigmoid(moe_.shared_router[t]), moe_.shared_down + size_t(t) * width, width, out + size_t(t) * width);
  });
}

}  // namespace qwenbox
