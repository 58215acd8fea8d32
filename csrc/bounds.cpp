// Computation of the error bounds; docs/concepts/exact_screening.md derives their constants.
#include "bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "panels.h"

namespace saefast {

namespace {

constexpr double kRoundoff = 1.0 / (1 << 24);  // relative rounding error of one float32 operation
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Size of scores from which float32 sums may overflow and bounds are void: such rows are scored in
// full.
constexpr double kScreenable = 1e37;

// Throws std::invalid_argument if an entry of values [m] is neither finite nor `also`.
template <class T>
void check_vector(const T* values, int64_t m, const char* name, double also,
                  const char* also_named) {
  if (values == nullptr) return;
  for (int64_t j = 0; j < m; ++j) {
    const double value = widen(values[j]);
    if (std::isfinite(value) || value == also) continue;
    throw std::invalid_argument(std::string(name) + " must be finite" + also_named +
                                ", but entry " + std::to_string(j) + " is " +
                                std::to_string(value));
  }
}

// Returns the term that makes a product exceed zero if its score exceeds the threshold: bias less
// threshold, raised by a bound on the rounding errors of both.
float less_threshold(double bias, double threshold) {
  if (bias == -INFINITY || threshold == INFINITY) return -kInfinity;
  const double size = std::fabs(bias) + std::fabs(threshold);
  if (size == 0.0) return 0.0f;
  const double smallest = std::numeric_limits<float>::denorm_min();
  return static_cast<float>(bias - threshold + 16 * kRoundoff * size + 2 * smallest);
}

template <class Storage>
double scaled_bias(const EncodeArgs<Storage>& args, int64_t j) {
  const double bias = args.bias ? widen(args.bias[j]) : 0.0;
  // A bias of -infinity masks a latent, regardless of the sign of its scale.
  return args.scale && bias != -INFINITY ? bias * widen(args.scale[j]) : bias;
}

}  // namespace

template <class Storage>
void check_columns(const EncodeArgs<Storage>& args) {
  if (args.absolute && args.threshold)
    throw std::invalid_argument("absolute must be false with a threshold");
  check_vector(args.bias, args.m, "bias", -INFINITY, " or -infinity");
  check_vector(args.scale, args.m, "scale", 0.0, "");
  check_vector(args.threshold, args.m, "threshold", INFINITY, " or infinity");
}

template <class Storage>
Columns describe_columns(const EncodeArgs<Storage>& args, int64_t width, const float* norm,
                         const float* lost) {
  const int64_t groups = (args.m + width - 1) / width;
  // A bias with which a column is never a candidate: -infinity would be the largest absolute value.
  const float never = args.absolute ? std::numeric_limits<float>::quiet_NaN() : -kInfinity;
  Columns columns{width,
                  norm,
                  lost,
                  std::vector<float>(groups * width, never),
                  {},
                  std::vector<float>(args.m, 0.0f),
                  std::vector<Columns::Most>(groups),
                  {},
                  0.0};
  for (int64_t j = 0; j < args.m; ++j) {
    const double scaled = scaled_bias(args, j);
    columns.bias[j] = scaled == -INFINITY ? never : static_cast<float>(scaled);
    if (std::isfinite(scaled)) {
      columns.largest_bias = std::max(columns.largest_bias, std::fabs(scaled));
      if (args.rescore && !args.threshold)
        columns.slack[j] = rounded_up(16 * kRoundoff * std::fabs(scaled));
    }
    Columns::Most& most = columns.most[j / width];
    most.norm = std::max(most.norm, norm[j]);
    most.lost = std::max(most.lost, lost[j]);
    most.slack = std::max(most.slack, columns.slack[j]);
  }
  if (args.threshold) {
    if (!args.rescore) columns.shown = columns.bias;
    for (int64_t j = 0; j < args.m; ++j)
      columns.bias[j] = less_threshold(scaled_bias(args, j), widen(args.threshold[j]));
  }
  for (const Columns::Most& most : columns.most) {
    columns.most_of_all.norm = std::max(columns.most_of_all.norm, most.norm);
    columns.most_of_all.lost = std::max(columns.most_of_all.lost, most.lost);
    columns.most_of_all.slack = std::max(columns.most_of_all.slack, most.slack);
  }
  return columns;
}

template <class Storage>
ScreenedRow describe_row(const EncodeArgs<Storage>& args, const Columns& columns, double squared,
                         double lost_squared) {
  const double norm = std::sqrt(squared), lost = std::sqrt(lost_squared);
  const double largest = norm * columns.most_of_all.norm + columns.largest_bias;
  ScreenedRow row;
  // The sum is a float in `by_lost`, whose product with a lost norm of zero must not be NaN.
  row.screened =
      norm + lost < kScreenable && largest < kScreenable && columns.most_of_all.lost < kInfinity;
  if (!row.screened || !args.rescore) return row;
  // The rounding of two sums of d products, the screened and the exact one, and of a few single
  // operations.
  const double rounding = 2 * static_cast<double>(args.d + 16) * kRoundoff;
  row.bound.by_norm = rounded_up(lost + norm * rounding);
  row.bound.by_lost = rounded_up(norm + lost);
  // Products below the smallest normal float may count as zero. If x is zero, scores are exact, and
  // ties need no second look.
  if (norm > 0.0)
    row.bound.underflow = static_cast<float>(args.d + 8) * std::numeric_limits<float>::min();
  return row;
}

#define SAEFAST_BOUNDS(Storage)                                                        \
  template void check_columns(const EncodeArgs<Storage>&);                             \
  template Columns describe_columns(const EncodeArgs<Storage>&, int64_t, const float*, \
                                    const float*);                                     \
  template ScreenedRow describe_row(const EncodeArgs<Storage>&, const Columns&, double, double);
SAEFAST_BOUNDS(float)
SAEFAST_BOUNDS(double)
SAEFAST_BOUNDS(bf16)
#undef SAEFAST_BOUNDS

}  // namespace saefast
