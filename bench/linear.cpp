// How near the products with quantised weights come to the machine's limits: reading weights from memory at few rows, integer products at
// many. Built with -DQWENBOX_CPP_TESTS=ON. Usage: bench_linear [--json] [variant=NAME] [threads=N] [kinds=A,B] [rows=1,512]
// [shape=NxK] [repeat=N]. Both ceilings are measured beside each repetition; medians are shown. With --json a line for each kind and row
// count: rates in bytes and operations (a multiply-add is two) a second.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ceiling.h"
#include "kernels.h"
#include "measure.h"
#include "pool.h"

using namespace qwenbox;

namespace {

struct KindName {
  Kind kind;
  const char* name;
  int scales[2];
};  // where fp16 scales stand in a raw block, -1: nowhere
const KindName kMeasured[] = {{Kind::int4, "int4", {0, -1}},       {Kind::int8, "int8", {0, -1}},       {Kind::q4_0, "q4_0", {0, -1}},
                              {Kind::q4_1, "q4_1", {0, 2}},        {Kind::q5_0, "q5_0", {0, -1}},       {Kind::q8_0, "q8_0", {0, -1}},
                              {Kind::q4_k, "q4_k", {0, 2}},        {Kind::q5_k, "q5_k", {0, 2}},        {Kind::q6_k, "q6_k", {208, -1}},
                              {Kind::int4_64, "int4_64", {0, -1}}, {Kind::int4_32, "int4_32", {0, -1}}, {Kind::uint8, "uint8", {0, -1}}};
constexpr uint64_t kStream = 512u << 20;  // packed bytes that few rows read at most, so that no cache keeps them
constexpr size_t kTaskBytes = 65536;      // as the runtime hands out panels: whole columns of many rows, so many bytes for few

struct Ceilings {
  double read, registers, fed;
};
Ceilings ceilings(const char* method, const uint8_t* arena, int threads) {
  double read = 0;
  for (int streams : {1, 2, 4}) read = std::max(read, qb_ceiling_read(arena, kStream, threads, 1, 4096, streams));
  return {read, qb_ceiling_rate(method, 0, 0, threads, 0.02), qb_ceiling_rate(method, 0, 1, threads, 0.02)};
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (char c : text)
    if (c == ',')
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

struct Huge {  // pages, as the runtime has them
  explicit Huge(size_t bytes) : memory(static_cast<uint8_t*>(qb_ceiling_buffer(bytes))), bytes(bytes) {}
  ~Huge() { qb_ceiling_buffer_free(memory, bytes); }
  Huge(const Huge&) = delete;
  Huge& operator=(const Huge&) = delete;
  uint8_t* memory;
  size_t bytes;
};

struct LinearOptions : Options {
  int repeat = 5, n = 12288, k = 4096;
  std::vector<std::string> kinds;
  std::vector<int> rows{1, 2, 4, 8, 16, 32, 64, 512};
};

bool parse_linear(int argc, char** argv, LinearOptions& o) {
  const bool known = parse(argc, argv, o, [&](const std::string& name, const std::string& value) {
    if (name == "repeat") {
      o.repeat = std::atoi(value.c_str());
    } else if (name == "kinds") {
      o.kinds = split(value);
    } else if (name == "rows") {
      o.rows.clear();
      for (const std::string& part : split(value)) o.rows.push_back(std::atoi(part.c_str()));
    } else {
      return name == "shape" && std::sscanf(value.c_str(), "%dx%d", &o.n, &o.k) == 2;
    }
    return true;
  });
  if (!known) return false;
  const bool positive = std::all_of(o.rows.begin(), o.rows.end(), [](int rows) { return rows > 0; });
  if (o.repeat < 1 || o.n < 1 || o.k < 1 || o.k % 256 != 0 || !positive)
    return std::puts("numbers are positive, and inputs a multiple of 256"), false;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  LinearOptions options;
  if (!parse_linear(argc, argv, options)) return 2;
  const Kernels& kernels = *options.kernels;
  const int threads = options.threads, n = options.n, k = options.k;
  const char* method = nullptr;  // a variant is named after its product
  for (int i = 0; (method = qb_ceiling_method(0, i)) && std::strcmp(method, kernels.name) != 0;) ++i;
  if (!method) return std::puts("the variant has no ceiling"), 2;

  Pool pool(threads);
  std::mt19937 random_bits(1);
  const Huge stream(kStream);
  uint8_t* const arena = stream.memory;
  if (!arena) return std::puts("not enough memory"), 1;
  if (!options.json)
    std::printf("%s, %d threads, %d x %d; rate / ceiling: memory read, products from registers, from L1\n", kernels.name, threads, n, k);
  for (const KindName& kind : kMeasured) {
    if (!options.kinds.empty() && std::find(options.kinds.begin(), options.kinds.end(), kind.name) == options.kinds.end()) continue;
    const size_t row_bytes = raw_row_bytes(kind.kind, k);
    const size_t block = row_bytes / (k / (kind.name[0] == 'i' ? 128 : std::strchr(kind.name, 'k') ? 256 : 32));
    std::vector<uint8_t> raw(kPanel * row_bytes);
    for (auto& byte : raw) byte = uint8_t(random_bits());
    for (size_t b = 0; b < raw.size(); b += block)
      for (int at : kind.scales)
        if (at >= 0) raw[b + at + 1] = 0x20 | raw[b + at + 1] % 8;
    const WeightLayout one = weight_layout(kind.kind, kPanel, k);
    const int matrix = (n + kPanel - 1) / kPanel, all = int(kStream / one.panel_bytes / matrix) * matrix;
    if (!all) return std::puts("the matrix is too large"), 2;
    pack_panels(kind.kind, kPanel, k, raw.data(), 0, 1, arena);
    for (int p = 1; p < all; ++p) std::memcpy(arena + p * one.panel_bytes, arena, one.panel_bytes);

    for (int rows : options.rows) {
      // As many matrices as the arena holds, so that none is in a cache; long ones once.
      const int panels = rows <= 64 ? all : matrix, stride = matrix * kPanel;
      const Weight weight{kind.kind, panels * kPanel, k, panels, one.groups, arena, one.panel_bytes};
      std::vector<float> x(size_t(rows) * k);
      for (auto& v : x) v = float(int(random_bits() % 2001) - 1000);
      const size_t padded = size_t(rows + 15) / 16 * 16 * one.groups;
      const Huge codes(padded * kGroup), members(padded * sizeof(RowGroup)), out(size_t(rows) * stride * sizeof(float));
      if (!codes.memory || !members.memory || !out.memory) return std::puts("not enough memory"), 1;
      const size_t odd = size_t(rows | 1) * one.groups;
      const Huge raised(odd * kGroup), scales(odd * sizeof(float));
      if (!raised.memory || !scales.memory) return std::puts("not enough memory"), 1;
      Activations a{rows, k, one.groups, reinterpret_cast<int8_t*>(codes.memory), reinterpret_cast<RowGroup*>(members.memory)};
      if (kernels.raised) a.raised = raised.memory, a.scales = reinterpret_cast<float*>(scales.memory);
      kernels.quantize_rows(x.data(), k, 0, rows, a);
      const size_t share = (kernels.linear_scratch(rows) + 4095) / 4096 * 4096;
      const Huge scratch(size_t(threads) * share);
      if (!scratch.memory) return std::puts("not enough memory"), 1;
      std::vector<double> bytes, operations, of_read, of_registers, of_fed, reads, registers, fed;
      const int64_t grain = rows > 64 ? kernels.panels : rows > 8 ? 1 : int64_t(kTaskBytes / (one.panel_bytes + 1));
      for (int pass = 0; pass < options.repeat; ++pass) {
        const Ceilings limit = ceilings(method, arena, threads);
        const auto begin = std::chrono::steady_clock::now();
        pool.run(panels, std::max<int64_t>(1, grain), [&](int t, int64_t first, int64_t last) {
          for (int64_t end; first < last; first = end) {
            end = std::min(last, (first / matrix + 1) * matrix);
            kernels.linear(weight, a, 0, rows, int(first), int(end), nullptr,
                           reinterpret_cast<float*>(out.memory) - size_t(first / matrix) * stride, size_t(stride),
                           scratch.memory + size_t(t) * share);
          }
        });
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        bytes.push_back(double(panels) * one.panel_bytes / seconds);
        operations.push_back(2.0 * rows * k * panels * kPanel / seconds);
        of_read.push_back(bytes.back() / limit.read);
        of_registers.push_back(operations.back() / limit.registers);
        of_fed.push_back(operations.back() / limit.fed);
        reads.push_back(limit.read), registers.push_back(limit.registers), fed.push_back(limit.fed);
      }
      if (options.json)
        std::printf(
            "{\"variant\": \"%s\", \"kind\": \"%s\", \"n\": %d, \"k\": %d, \"rows\": %d, \"threads\": %d, \"bytes\": %.4g, "
            "\"operations\": %.4g, \"read_ceiling\": %.4g, \"registers_ceiling\": %.4g, \"l1_ceiling\": %.4g, "
            "\"of_read\": %.3f, \"of_registers\": %.3f, \"of_l1\": %.3f}\n",
            kernels.name, kind.name, n, k, rows, threads, median(bytes), median(operations), median(reads), median(registers), median(fed),
            median(of_read), median(of_registers), median(of_fed));
      else
        std::printf("%-5s %3d rows %6.2f GB/s / %5.2f = %.2f   %7.1f GOP/s / %6.1f = %.2f  / %6.1f = %.2f\n", kind.name, rows,
                    median(bytes) / 1e9, median(reads) / 1e9, median(of_read), median(operations) / 1e9, median(registers) / 1e9,
                    median(of_registers), median(fed) / 1e9, median(of_fed));
      std::fflush(stdout);
    }
  }
  return 0;
}
