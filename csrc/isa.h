// Selection of the instruction set: the best that the processor supports, or one chosen by name.
//
// All functions may be called from several threads. A change of level affects later calls only.
#pragma once
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace saefast {

// Returns the names of the compiled levels, slowest first.
std::vector<std::string> compiled_levels();
// Returns the names of the compiled levels that this processor can run, slowest first.
std::vector<std::string> usable_levels();
// Chooses a level by name for all threads. Throws std::invalid_argument if it is not usable.
void use_level(const std::string& name);
// Returns the name of the active level, which initially is the last usable level.
std::string active_level();
// Returns the kernels of the active level; the reference stays valid.
const Kernels& active_kernels();

}  // namespace saefast
