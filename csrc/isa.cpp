// The levels that this build contains, and the detection of those that the processor supports.
#include "isa.h"

#include <atomic>
#include <optional>
#include <stdexcept>

namespace saefast {

namespace {

// An instruction set and its kernels.
struct Level {
  const char* name;
  // Absent if this processor cannot run the level. The function that makes the table is compiled
  // for the level like everything in its file, so it must not be called either.
  std::optional<Kernels> kernels;
};

Level level(const char* name, bool usable, Kernels (*make)()) {
  return {name, usable ? std::optional(make()) : std::nullopt};
}

const std::vector<Level>& levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> found{level("scalar", true, portable::kernels)};
#if defined(SAEFAST_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
    found.push_back(level("avx2", has_avx2, avx2::kernels));
    found.push_back(level("avx512", has_avx512, avx512::kernels));
    found.push_back(level("avx512_bf16", has_bf16, avx512_bf16::kernels));
#endif
    return found;
  }();
  return all;
}

std::atomic<const Level*>& chosen() {
  static std::atomic<const Level*> chosen = [] {
    const Level* best = nullptr;
    for (const Level& level : levels())
      if (level.kernels) best = &level;
    return best;
  }();
  return chosen;
}

std::vector<std::string> names(bool usable_only) {
  std::vector<std::string> out;
  for (const Level& level : levels())
    if (level.kernels || !usable_only) out.emplace_back(level.name);
  return out;
}

std::string listed(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : ", ") + word;
  return line;
}

}  // namespace

std::vector<std::string> compiled_levels() { return names(false); }
std::vector<std::string> usable_levels() { return names(true); }

void use_level(const std::string& name) {
  for (const Level& level : levels())
    if (level.kernels && level.name == name) {
      chosen().store(&level);
      return;
    }
  throw std::invalid_argument("instruction set level must be one of " + listed(usable_levels()) +
                              " on this processor, got '" + name + "'");
}

std::string active_level() { return chosen().load()->name; }

const Kernels& active_kernels() { return *chosen().load()->kernels; }

}  // namespace saefast
