// The end of an encode of one row: its candidates that may be wanted, their exact scores, the
// result.
#pragma once
#include <cstdint>
#include <vector>

#include "bounds.h"
#include "candidates.h"
#include "encode_args.h"
#include "simd/kernels.h"

namespace saefast {

// A column and its score.
template <class Score>
struct Scored {
  Score value;
  int64_t id;
  // Returns whether this comes before `other` in the result: by descending score, then ascending
  // column. NaN, from sums that overflow, comes first, as in torch.
  bool operator<(const Scored& other) const {
    const bool is_nan = value != value, other_is_nan = other.value != other.value;
    if (is_nan != other_is_nan) return is_nan;
    if (is_nan || value == other.value) return id < other.id;
    return value > other.value;
  }
};

// Memory that a worker reuses for every row.
template <class Storage>
struct FinishSpace {
  std::vector<int64_t> ids;
  std::vector<int32_t> columns, places;
  std::vector<float> screened, errors, lower, ranks;
  std::vector<compute_t<Storage>> products;
  std::vector<Scored<compute_t<Storage>>> scored;
};

// Writes the result of row `row` to args, from the candidates in `lists`, which together hold
// ascending columns. If the screen failed, or left fewer than k candidates, all columns are scored.
// Calls for different rows may run concurrently, each with its own `space`.
template <class Storage>
void finish_row(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                int64_t row, const ScreenedRow& screened, const Candidates* const* lists,
                int64_t list_count, FinishSpace<Storage>& space);

}  // namespace saefast
