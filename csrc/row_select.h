// The logic of csrc/cuda/ on the CPU, one row at a time, so that tests can look at it.
#pragma once
#include <cstdint>

#include "cuda/keep_row.h"

namespace saefast {

// As `keep_best` in csrc/cuda/select.h, by a team of 1 lane, or of 32 that are threads.
void keep_best_row(const Screened& screened, int64_t row, bool hot, bool bounded, int32_t lanes);

// `list` holds `count` keys; values and indices are those of one row.
void choose_row_of(const int64_t* list, int32_t count, int32_t k, float* values, int64_t* indices,
                   int32_t lanes);

// The keys of scores whose indices are their places.
void keys_of(const float* scores, int32_t count, int64_t* keys);

}  // namespace saefast
