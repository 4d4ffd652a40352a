// What the benchmark programs share: their arguments, and medians.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace qwenbox {

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Options {
  const Kernels* kernels = *available_kernels();
  int threads = int(std::thread::hardware_concurrency());
  bool json = false;
};

// [--json] [variant=NAME] [threads=N]; any other NAME=VALUE belongs to take(name, value), which is false where it does not know it.
template <class Take>
bool parse(int argc, char** argv, Options& options, const Take& take) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t cut = argument.find('=');
    const std::string name = argument.substr(0, cut), value = cut == std::string::npos ? "" : argument.substr(cut + 1);
    if (argument == "--json")
      options.json = true;
    else if (name == "variant")
      options.kernels = find_kernels(value.c_str());
    else if (name == "threads")
      options.threads = std::atoi(value.c_str());
    else if (!take(name, value))
      return std::printf("unknown: %s\n", argv[i]), false;
  }
  if (!options.kernels) return std::puts("this processor has no such variant"), false;
  if (options.threads < 1) return std::puts("at least one thread"), false;
  return true;
}

inline bool no_others(const std::string&, const std::string&) { return false; }

}  // namespace qwenbox
