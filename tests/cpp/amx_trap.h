// Tile instructions on a processor that has none: each raises SIGILL, whose handler does what Intel's manual says and goes on behind it. So
// the library's own objects run as the compiler left them, with the memory that the instructions really touch.
//
// Nothing in the library knows of this. What is linked with amx_trap.cpp and the linker's --wrap (CMakeLists.txt) finds AMX where the
// vectors of its variant are; the handler is there only where the processor, or the system, is without AMX.
#pragma once
#include <cstdint>
#include <string>

namespace qwenbox::amx_trap {

enum class Operation {
  ldtilecfg,
  sttilecfg,
  tilerelease,
  tilezero,
  tileloadd,
  tileloaddt1,
  tilestored,
  tdpbssd,
  tdpbsud,
  tdpbusd,
  tdpbuud,
  tdpbf16ps,
};

constexpr int kNoRegister = -1, kBehind = 16;  // behind: the address of the next instruction

struct Instruction {
  Operation operation;
  int length;
  int tiles[3];     // read or written; of a product: sums, rows, columns
  int base, index;  // numbers of registers, or one of the above
  int scale;
  int displacement_bytes;
  int32_t displacement;
};

// False where no tile instruction stands. Reads no byte behind the instruction.
bool decode(const uint8_t* code, Instruction& out);

// As objdump writes it.
std::string text(const Instruction& instruction);

// Whether the handler is what runs tile instructions in this process.
bool installed();

}  // namespace qwenbox::amx_trap
