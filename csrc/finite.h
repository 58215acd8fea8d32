// Checks for NaN and infinity in inputs.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "storage.h"

namespace saefast {

// Returns whether all of row [d] is finite.
template <class Storage>
bool all_finite(const Storage* row, int64_t d) {
  for (int64_t i = 0; i < d; ++i)
    if (!std::isfinite(widen(row[i]))) return false;
  return true;
}

// Throws std::invalid_argument for a row of the argument `name` that is not finite.
[[noreturn]] inline void throw_not_finite(const char* name, int64_t row) {
  throw std::invalid_argument(std::string(name) + " must be finite, but row " +
                              std::to_string(row) + " holds NaN or infinity");
}

}  // namespace saefast
