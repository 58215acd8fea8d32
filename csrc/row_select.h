// The logic of csrc/cuda/ on the CPU, one row at a time, for tests.
#pragma once
#include <cstdint>

#include "cuda/keep_row.h"

namespace saefast {

// Runs `keep_best` of csrc/cuda/select.h for one row, by a team of 1 lane, or of 32 lanes that are
// threads. Throws std::invalid_argument for other numbers of lanes.
void keep_best_row(const Screened& screened, int64_t row, bool hot, bool bounded, int32_t lanes);

// Runs `choose` of csrc/cuda/select.h for one row: list [count], values and indices [k].
void choose_row_of(const int64_t* list, int32_t count, int32_t k, float* values, int64_t* indices,
                   int32_t lanes);

// Writes the keys of scores [count] whose indices are their positions.
void keys_of(const float* scores, int32_t count, int64_t* keys);

}  // namespace saefast
