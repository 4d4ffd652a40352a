// What this processor has, and the operating system keeps the registers of.
#pragma once

namespace qwenbox {

// Why a variant cannot run, for a person; nullptr where it can.
struct Processor {
  const char *avx2, *avxvnni, *avx512vnni, *amx;
};

// Asked once a process; the same call asks the system for the tiles of AMX.
const Processor& processor();

}  // namespace qwenbox
