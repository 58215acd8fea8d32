#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace saefast {

namespace {

struct Level {
  Kernels kernels;
  bool usable;
};

const std::vector<Level>& levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> found{{portable::kernels(), true}};
#if defined(SAEFAST_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    found.push_back({avx2::kernels(), has_avx2});
    found.push_back({avx512::kernels(), has_avx512});
    found.push_back(
        {avx512_bf16::kernels(), has_avx512 && __builtin_cpu_supports("avx512bf16") != 0});
#endif
    return found;
  }();
  return all;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels = [] {
    const Kernels* best = nullptr;
    for (const Level& level : levels())
      if (level.usable) best = &level.kernels;
    return best;
  }();
  return kernels;
}

std::vector<std::string> names(bool usable_only) {
  std::vector<std::string> out;
  for (const Level& level : levels())
    if (level.usable || !usable_only) out.emplace_back(level.kernels.name);
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
    if (level.usable && level.kernels.name == name) {
      chosen().store(&level.kernels);
      return;
    }
  throw std::invalid_argument("instruction set level must be one of " + listed(usable_levels()) +
                              " on this processor, got '" + name + "'");
}

const Kernels& active_kernels() { return *chosen().load(); }

}  // namespace saefast
