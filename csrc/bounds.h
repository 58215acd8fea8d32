// Error bounds of the scores of a screen, derived in docs/concepts/exact_screening.md.
#pragma once
#include <cstdint>
#include <vector>

#include "encode_args.h"
#include "storage.h"

namespace saefast {

// Bounds and biases of the columns, in groups of `width`.
struct Columns {
  int64_t width;
  const float* norm;  // [m] upper bounds of the norms of the scaled weight rows
  const float* lost;  // [m] upper bounds of the norms of their rounding errors
  // [groups * width] term that is added to screened products before they are compared: bias *
  // scale, less the threshold if there is one; for masked columns and beyond m -infinity, or NaN if
  // scores are ranked by their absolute value
  std::vector<float> bias;
  // [groups * width] bias * scale, if `bias` includes a threshold and values come from the screen;
  // otherwise empty
  std::vector<float> shown;
  std::vector<float> slack;  // [m] share of the bias in the error
  // Maxima over a group of columns.
  struct Most {
    float norm = 0.0f, lost = 0.0f, slack = 0.0f;
  };
  std::vector<Most> most;     // [groups] maxima of each group
  Most most_of_all;           // maxima over all columns
  double largest_bias = 0.0;  // largest |bias * scale| that is finite
  // Returns the address of shown[j], or null if `shown` is empty.
  const float* shown_from(int64_t j) const { return shown.empty() ? nullptr : shown.data() + j; }
};

// Error bound of one row: the screened score of column j differs from the exact one by at most
// by_norm * norm[j] + by_lost * lost[j] + slack[j], plus `underflow` if norm[j] > 0.
struct RowBound {
  float by_norm = 0.0f;
  float by_lost = 0.0f;
  float underflow = 0.0f;
  // Returns the bound for a column, or for all columns of a group from their maxima.
  float reach(float norm, float lost, float slack) const {
    return by_norm * norm + by_lost * lost + slack + (norm > 0.0f ? underflow : 0.0f);
  }
  float reach(const Columns::Most& most) const { return reach(most.norm, most.lost, most.slack); }
};

// State of one row of x in the screen.
struct ScreenedRow {
  RowBound bound;
  bool screened = false;  // false: all columns are scored, since bounds might overflow
};

// Checks bias, scale and threshold. Throws std::invalid_argument if an entry is not finite, except
// that a bias may be -infinity and a threshold infinity.
template <class Storage>
void check_columns(const EncodeArgs<Storage>& args);

// Computes the bounds of the columns, in groups of `width`. `norm` and `lost` [m] belong to the
// packed weight and must outlive the result.
template <class Storage>
Columns describe_columns(const EncodeArgs<Storage>& args, int64_t width, const float* norm,
                         const float* lost);

// Computes the bound of a row from its squared norm and the squared norm of its rounding
// error, as PackKernels measures them.
template <class Storage>
ScreenedRow describe_row(const EncodeArgs<Storage>& args, const Columns& columns, double squared,
                         double lost_squared);

}  // namespace saefast
