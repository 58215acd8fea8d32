// The end of a row: which candidates can be wanted, their exact scores, the result.
#pragma once
#include <cstdint>
#include <vector>

#include "bounds.h"
#include "candidates.h"
#include "encode_args.h"
#include "simd/kernels.h"

namespace saefast {

template <class Score>
struct Scored {
  Score value;
  int64_t id;
  // Comes first in the result. NaN, from sums that overflow, comes first of all, as in torch.
  bool operator<(const Scored& other) const {
    const bool is_nan = value != value, other_is_nan = other.value != other.value;
    if (is_nan != other_is_nan) return is_nan;
    if (is_nan || value == other.value) return id < other.id;
    return value > other.value;
  }
};

// Memory that one worker uses for row after row.
template <class Storage>
struct FinishSpace {
  std::vector<int64_t> ids;
  std::vector<float> screened, lower;
  std::vector<compute_t<Storage>> products;
  std::vector<Scored<compute_t<Storage>>> scored;
};

// Writes the row's result, from what the screen let through in `lists`, by ascending column.
template <class Storage>
void finish_row(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                int64_t row, const ScreenedRow& screened, const Candidates* const* lists,
                int64_t list_count, FinishSpace<Storage>& space);

}  // namespace saefast
