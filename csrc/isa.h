// Which instruction set this process uses: the best the processor has, or the one it was told.
#pragma once
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace saefast {

// Names of the levels compiled in, slowest first.
std::vector<std::string> compiled_levels();
// Those of them that this processor can run.
std::vector<std::string> usable_levels();
// Chooses a level by name; throws std::invalid_argument for one that is not usable.
void use_level(const std::string& name);
// The chosen level's name and kernels. Starts as the last usable level.
std::string active_level();
const Kernels& active_kernels();

}  // namespace saefast
