// Launches of the kernels in select.cu, for callers without the headers of CUDA.
//
// Calls are asynchronous on the given stream, and all memory belongs to its device. Results are
// deterministic. Both functions throw std::runtime_error if the launch fails.
#pragma once
#include <cstdint>

#include "keep_row.h"

namespace saefast {

// A cudaStream_t of the current device.
using Stream = uintptr_t;

// Maximum length of a list: longer ones do not fit the shared memory of a block.
constexpr int32_t MOST_CAPACITY = 8192;

// Appends screened columns to the lists of all rows; see RowKeeper for `hot` and `bounded`. The
// capacity must be a power of two, at most MOST_CAPACITY.
void keep_best(const Screened& screened, int64_t rows, bool hot, bool bounded, Stream stream);

// Lists of all rows and their best entries.
struct Chosen {
  const int64_t* keys;    // [rows, capacity]
  const int32_t* counts;  // [rows] lengths of the lists
  void* values;           // [rows, k] output, bfloat16 or float
  int64_t* indices;       // [rows, k] output
  int32_t k;
  int32_t capacity;  // row stride of `keys`
};

// Writes the k best entries of every row's list, in descending order. Values beyond the length of a
// list are NaN, and their indices undefined.
void choose(const Chosen& chosen, int64_t rows, bool bfloat16, Stream stream);

}  // namespace saefast
