#include "amx_trap.h"

#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "amx.h"
#include "processor.h"

namespace qwenbox::amx_trap {
namespace {

// --- tiles -------------------------------------------------------------------------------------------------------

struct TileFile {
  TileConfig config;
  uint8_t data[8][16][64];
};

TileFile& tile_file() {
  static thread_local TileFile file;
  return file;
}

// What would be a fault ends the program.
void check(bool good, const Instruction& instruction, const char* rule) {
  if (good) return;
  char message[160];
  std::snprintf(message, sizeof message, "AMX: %s breaks a rule: %s\n", text(instruction).c_str(), rule);
  std::fputs(message, stderr);
  std::abort();
}

void load_config(const Instruction& in, const uint8_t* from) {
  TileConfig config;
  std::memcpy(&config, from, sizeof config);
  check(config.palette <= 1 && config.start_row == 0, in, "palette 0 or 1, from row 0 on");
  for (uint8_t byte : config.reserved) check(byte == 0, in, "reserved bytes of a configuration are zero");
  for (int i = 0; i < 16; ++i)
    check(i < 8 && config.palette == 1
              ? config.rows[i] <= 16 && config.row_bytes[i] <= 64 && (config.rows[i] == 0) == (config.row_bytes[i] == 0)
              : config.palette == 0 || (config.rows[i] == 0 && config.row_bytes[i] == 0),
          in, "eight tiles of at most 16 rows of 64 bytes");
  if (config.palette == 0) config = {};
  tile_file() = {config, {}};
}

void check_tile(const Instruction& in, int tile) {
  const TileConfig& config = tile_file().config;
  check(config.palette == 1 && tile < 8 && config.rows[tile] > 0, in, "a tile is configured");
}

void load_tile(const Instruction& in, const uint8_t* from, int64_t stride) {
  const int tile = in.tiles[0];
  check_tile(in, tile);
  TileFile& file = tile_file();
  std::memset(file.data[tile], 0, sizeof file.data[tile]);
  for (int r = 0; r < file.config.rows[tile]; ++r) std::memcpy(file.data[tile][r], from + r * stride, file.config.row_bytes[tile]);
}

void store_tile(const Instruction& in, uint8_t* to, int64_t stride) {
  const int tile = in.tiles[0];
  check_tile(in, tile);
  const TileFile& file = tile_file();
  for (int r = 0; r < file.config.rows[tile]; ++r) std::memcpy(to + r * stride, file.data[tile][r], file.config.row_bytes[tile]);
}

void check_shapes(const Instruction& in) {
  const auto [sums, rows, columns] = in.tiles;
  check(sums != rows && sums != columns && rows != columns, in, "a product has three tiles");
  for (int tile : in.tiles) check_tile(in, tile);
  const TileConfig& config = tile_file().config;
  check(config.row_bytes[sums] % 4 == 0 && config.row_bytes[rows] % 4 == 0, in, "rows of a product are whole words");
  check(config.rows[sums] == config.rows[rows] && config.row_bytes[sums] == config.row_bytes[columns] &&
            config.row_bytes[rows] == 4 * config.rows[columns],
        in, "the shapes of a product fit");
}

// sums[m][n] += sum over k, j < 4 of rows[m][4 k + j] * columns[k][4 n + j], modulo 2^32. What lies outside of the shapes is zero.
template <class Row, class Column>
__attribute__((target("avx2"))) void dot_bytes(const Instruction& in) {
  check_shapes(in);
  TileFile& file = tile_file();
  const auto [sums, rows, columns] = in.tiles;
  int32_t factors[16][4][16];
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 4; ++j)
      for (int n = 0; n < 16; ++n) factors[k][j][n] = Column(file.data[columns][k][4 * n + j]);
  for (int m = 0; m < file.config.rows[sums]; ++m) {
    uint32_t total[16];
    std::memcpy(total, file.data[sums][m], 64);
    for (int k = 0; k < file.config.rows[columns]; ++k)
      for (int j = 0; j < 4; ++j) {
        const int32_t row = Row(file.data[rows][m][4 * k + j]);
        for (int n = 0; n < 16; ++n) total[n] += uint32_t(row * factors[k][j][n]);
      }
    std::memcpy(file.data[sums][m], total, 64);
  }
}

// Denormals count as zeros, as factors and as results.
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

inline float widened(const uint8_t* bf16) {
  const uint32_t bits = uint32_t(bf16[0] | bf16[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

// sums[m][n] += (chain over k of rows[m][2 k] * columns[k][2 n]) + (the same of the odd ones)
__attribute__((target("avx2,fma"))) void dot_bf16(const Instruction& in) {
  check_shapes(in);
  TileFile& file = tile_file();
  const auto [sums, rows, columns] = in.tiles;
  float factors[16][2][16];
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 2; ++j)
      for (int n = 0; n < 16; ++n) factors[k][j][n] = widened(file.data[columns][k] + 4 * n + 2 * j);
  for (int m = 0; m < file.config.rows[sums]; ++m) {
    float chains[2][16] = {}, total[16];
    for (int k = 0; k < file.config.rows[columns]; ++k)
      for (int j = 0; j < 2; ++j) {
        const float row = widened(file.data[rows][m] + 4 * k + 2 * j);
        for (int n = 0; n < 16; ++n) chains[j][n] = flushed(__builtin_fmaf(row, factors[k][j][n], chains[j][n]));
      }
    std::memcpy(total, file.data[sums][m], 64);
    for (int n = 0; n < 16; ++n) total[n] = flushed(flushed(total[n]) + flushed(chains[0][n] + chains[1][n]));
    std::memcpy(file.data[sums][m], total, file.config.row_bytes[sums]);
  }
}

// --- instructions ------------------------------------------------------------------------------------------------

constexpr int kRegisters[17] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8,
                                REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP};
constexpr const char* kRegisterNames[17] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8",
                                            "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "rip"};
constexpr const char* kNames[] = {"ldtilecfg",  "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1",
                                  "tilestored", "tdpbssd",   "tdpbsud",     "tdpbusd",  "tdpbuud",   "tdpbf16ps"};

// By the prefix that VEX.pp stands for: none, 66, F3, F2. Only with memory, only with registers, or false.
bool operation_of(int opcode, int prefix, bool memory, int reg, int rm, Operation& out) {
  using O = Operation;
  const auto is = [&](bool holds, O operation) { return out = operation, holds; };
  if (opcode == 0x49 && memory) return reg == 0 && prefix < 2 && is(true, prefix ? O::sttilecfg : O::ldtilecfg);
  if (opcode == 0x49 && prefix == 0) return is(reg == 0 && rm == 0, O::tilerelease);
  if (opcode == 0x49) return is(prefix == 3 && rm == 0, O::tilezero);
  constexpr O moves[] = {O::tileloaddt1, O::tilestored, O::tileloadd}, products[] = {O::tdpbuud, O::tdpbusd, O::tdpbsud, O::tdpbssd};
  if (opcode == 0x4B) return memory && rm == 4 && prefix > 0 && is(true, moves[prefix - 1]);
  if (opcode == 0x5E) return is(!memory, products[prefix]);
  return opcode == 0x5C && is(!memory && prefix == 2, O::tdpbf16ps);
}

bool is_product(Operation operation) { return operation >= Operation::tdpbssd; }
bool has_memory(Operation operation) {
  return operation <= Operation::sttilecfg || (operation >= Operation::tileloadd && operation <= Operation::tilestored);
}

uint8_t* address(const Instruction& in, const greg_t* registers) {
  uint64_t at = uint64_t(int64_t(in.displacement));
  if (in.base != kNoRegister) at += uint64_t(registers[kRegisters[in.base]]);
  if (in.base == kBehind) at += uint64_t(in.length);
  const bool tile = in.operation >= Operation::tileloadd;  // whose index is the distance of rows
  if (!tile && in.index != kNoRegister) at += uint64_t(registers[kRegisters[in.index]]) * uint64_t(in.scale);
  return reinterpret_cast<uint8_t*>(at);
}

void execute(const Instruction& in, const greg_t* registers) {
  uint8_t* const memory = has_memory(in.operation) ? address(in, registers) : nullptr;
  const int64_t stride = in.index == kNoRegister ? 0 : registers[kRegisters[in.index]] * in.scale;
  switch (in.operation) {
    case Operation::ldtilecfg:
      return load_config(in, memory);
    case Operation::sttilecfg:
      std::memcpy(memory, &tile_file().config, sizeof(TileConfig));
      return;
    case Operation::tilerelease:
      tile_file() = {};
      return;
    case Operation::tilezero:
      check_tile(in, in.tiles[0]);
      std::memset(tile_file().data[in.tiles[0]], 0, sizeof tile_file().data[0]);
      return;
    case Operation::tileloadd:
    case Operation::tileloaddt1:
      return load_tile(in, memory, stride);
    case Operation::tilestored:
      return store_tile(in, memory, stride);
    case Operation::tdpbssd:
      return dot_bytes<int8_t, int8_t>(in);
    case Operation::tdpbsud:
      return dot_bytes<int8_t, uint8_t>(in);
    case Operation::tdpbusd:
      return dot_bytes<uint8_t, int8_t>(in);
    case Operation::tdpbuud:
      return dot_bytes<uint8_t, uint8_t>(in);
    case Operation::tdpbf16ps:
      return dot_bf16(in);
  }
}

// --- the handler -------------------------------------------------------------------------------------------------

bool handles = false;
struct sigaction before;

// Raised by the instruction at RIP and never from the middle of a function that is not ready for it. Those that follow at once are done
// in one go: a signal costs more than most of them.
void handle(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  Instruction in;
  bool any = false;
  for (; decode(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), in); any = true) {
    execute(in, registers);
    registers[REG_RIP] += in.length;
  }
  if (!any) sigaction(SIGILL, &before, nullptr);  // it is raised again, as if this were not here
}

void install() {
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, &before);
  handles = true;
}

}  // namespace

bool decode(const uint8_t* code, Instruction& out) {
  if (code[0] != 0xC4) return false;
  const int first = code[1], second = code[2];
  const bool high_reg = !(first & 0x80), high_index = !(first & 0x40), high_base = !(first & 0x20);
  if ((first & 0x1F) != 2 || (second & 0x84) != 0 || high_reg) return false;  // the map 0F38, W0, 128 bits, eight tiles
  const int opcode = code[3], modrm = code[4], mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7;
  const int third = ~(second >> 3) & 15;
  if (!operation_of(opcode, second & 3, mod != 3, reg, rm, out.operation)) return false;
  if (is_product(out.operation) ? third > 7 : third != 0) return false;
  if (mod == 3 && high_base) return false;
  out.tiles[0] = reg, out.tiles[1] = rm, out.tiles[2] = third;
  out.base = out.index = kNoRegister, out.scale = 1, out.displacement_bytes = 0, out.displacement = 0;
  out.length = 5;
  if (mod == 3) return true;
  int& bytes = out.displacement_bytes;
  bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
  out.base = rm + 8 * high_base;
  if (rm == 4) {
    const int sib = code[out.length++], index = (sib >> 3 & 7) + 8 * high_index;
    out.base = (sib & 7) + 8 * high_base;
    if (index != 4) out.index = index, out.scale = 1 << (sib >> 6);
    if (mod == 0 && (sib & 7) == 5) out.base = kNoRegister, bytes = 4;
  } else if (mod == 0 && rm == 5) {
    out.base = kBehind, bytes = 4;
  }
  if (bytes == 1) out.displacement = int8_t(code[out.length]);
  if (bytes == 4) std::memcpy(&out.displacement, code + out.length, 4);
  out.length += bytes;
  return true;
}

std::string text(const Instruction& in) {
  const auto tile = [&](int i) { return "%tmm" + std::to_string(in.tiles[i]); };
  const std::string name = kNames[int(in.operation)];
  if (in.operation == Operation::tilerelease) return name;
  if (in.operation == Operation::tilezero) return name + " " + tile(0);
  if (is_product(in.operation)) return name + " " + tile(2) + "," + tile(1) + "," + tile(0);
  char displacement[16] = "";
  if (in.displacement_bytes)
    std::snprintf(displacement, sizeof displacement, "%s0x%x", in.displacement < 0 ? "-" : "", std::abs(in.displacement));
  std::string memory = std::string(displacement) + "(";
  if (in.base != kNoRegister) memory += "%" + std::string(kRegisterNames[in.base]);
  // A byte for the index without need: with these bases it is there anyway.
  if (in.index == kNoRegister && in.operation >= Operation::tileloadd && in.base % 8 != 4) memory += ",%riz,1";
  if (in.index != kNoRegister) memory += ",%" + std::string(kRegisterNames[in.index]) + "," + std::to_string(in.scale);
  memory += ")";
  if (in.operation < Operation::tilerelease) return name + " " + memory;
  return in.operation == Operation::tilestored ? name + " " + tile(0) + "," + memory : name + " " + memory + "," + tile(0);
}

bool installed() { return handles; }

}  // namespace qwenbox::amx_trap

// What --wrap calls in place of qwenbox::processor(), and the real one.
extern "C" {
const qwenbox::Processor& __real__ZN7qwenbox9processorEv();
const qwenbox::Processor& __wrap__ZN7qwenbox9processorEv() {
  static const qwenbox::Processor trapped = [] {
    qwenbox::Processor found = __real__ZN7qwenbox9processorEv();
    if (found.amx && !found.avx512vnni) qwenbox::amx_trap::install(), found.amx = nullptr;
    return found;
  }();
  return trapped;
}
}
