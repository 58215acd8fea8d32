// How far the scores of a screen can lie from the true ones; see docs/concepts/exact_screening.md.
#pragma once
#include <cstdint>
#include <vector>

#include "encode_args.h"
#include "storage.h"

namespace saefast {

// What the screen knows of the columns, in groups of `width`.
struct Columns {
  int64_t width;
  const float* norm;  // [m]
  const float* lost;  // [m]
  // [groups * width] what is added to screened products before they are compared: bias * scale,
  // less the threshold where there is one; -infinity beyond m
  std::vector<float> bias;
  // [groups * width] bias * scale, where `bias` has a threshold in it and values come from the
  // screen; else empty
  std::vector<float> shown;
  std::vector<float> slack;  // [m] what the bias adds to the error
  struct Most {
    float norm = 0.0f, lost = 0.0f, slack = 0.0f;
  };
  std::vector<Most> most;  // [groups]
  Most most_of_all;
  double largest_bias = 0.0;
  const float* shown_from(int64_t j) const { return shown.empty() ? nullptr : shown.data() + j; }
};

// How far a row's screened scores can lie from the true ones, at most:
// by_norm * norm[j] + by_lost * lost[j] + slack[j] for column j, and `underflow` if norm[j] > 0.
struct RowBound {
  float by_norm = 0.0f;
  float by_lost = 0.0f;
  float underflow = 0.0f;
  float reach(float norm, float lost, float slack) const {
    return by_norm * norm + by_lost * lost + slack + (norm > 0.0f ? underflow : 0.0f);
  }
  float reach(const Columns::Most& most) const { return reach(most.norm, most.lost, most.slack); }
};

// One row of x as the screen sees it.
struct ScreenedRow {
  RowBound bound;
  bool screened = false;  // false: scored in full, because it is not finite or could overflow
};

// Throws std::invalid_argument where bias, scale or threshold is not finite; a bias may be
// -infinity, a threshold infinity.
template <class Storage>
void check_columns(const EncodeArgs<Storage>& args);

// `norm` and `lost` belong to the packed weight and must outlive the result.
template <class Storage>
Columns describe_columns(const EncodeArgs<Storage>& args, int64_t width, const float* norm,
                         const float* lost);

// From a row's squared norm and the square of what rounding took from it.
template <class Storage>
ScreenedRow describe_row(const EncodeArgs<Storage>& args, const Columns& columns, double squared,
                         double lost_squared);

}  // namespace saefast
