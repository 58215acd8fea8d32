// The kernels of select.cu for callers that know no CUDA.
#pragma once
#include <cstdint>

#include "keep_row.h"

namespace saefast {

// A cudaStream_t of the current device, to which all memory belongs.
using Stream = uintptr_t;

// Longer lists do not fit the shared memory of a block.
constexpr int32_t MOST_CAPACITY = 8192;

// Feeds columns to the lists of all rows. See RowKeeper for `hot`; `bounded` keeps what may be
// among the k best, otherwise scores are what the product says. Throws if the launch fails.
void keep_best(const Screened& screened, int64_t rows, bool hot, bool bounded, Stream stream);

struct Chosen {
  const int64_t* keys;  // [rows, capacity]
  const int32_t* counts;
  void* values;  // [rows, k], like indices
  int64_t* indices;
  int32_t k;
  int32_t capacity;
};

// The k best of every row's list, in order; values are bfloat16 or float.
void choose(const Chosen& chosen, int64_t rows, bool bfloat16, Stream stream);

}  // namespace saefast
