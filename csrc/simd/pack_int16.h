// Packing of rows as 16-bit integers for the screening GEMM; pack_kernels.h includes this file.
//
// A row becomes q * step, with integers q and one step for the whole row. Integer products are
// added without rounding if their sums fit 32 bits. By Cauchy and Schwarz a sum of q_x q_w, or of
// some of its terms, is at most |q_x| |q_w|, so |q| <= 46340 is enough: 46340^2 < 2^31. Rounding
// adds at most sqrt(d) / 2 to the norm of a row, so `longest_int16`, the largest norm before
// rounding, is less by that.
#include "kernels.h"

namespace saefast::SAEFAST_LEVEL {

// Norms between which a row is packed. The scores of shorter rows could underflow before the last
// multiplication: such rows are rounded with the step of a row of the least norm, and the loss is
// measured. The scores of longer rows could overflow: such rows count as lost.
constexpr double kLeastInt16Length = 0x1p-96, kMostInt16Length = 1e37;

template <class Storage>
bool all_zero(const Storage* row, int64_t d) {
  for (int64_t i = 0; i < d; ++i)
    if (widen(row[i]) != 0) return false;
  return true;
}

// Returns the squared norm of a scaled row, above zero unless the row or the scale is zero: squares
// in double underflow, too, but rows of norm zero have no bound for products that underflow.
template <class Storage>
double above_zero(double squared, const Storage* row, int64_t d, double scale) {
  return squared == 0.0 && scale != 0.0 && !all_zero(row, d) ? 0x1p-1022 : squared;
}

// Returns the largest norm of a row in steps, before it is rounded.
static inline double longest_int16(int64_t d) {
  const double longest = 46340.0 - 0.5 * __builtin_sqrt(static_cast<double>(d));
  return longest < 32767.0 ? longest : 32767.0;
}

// Returns the step of a row of this norm, raised by more than its own rounding errors.
static inline float int16_step(double length, int64_t d) {
  const double at_least = length < kLeastInt16Length ? kLeastInt16Length : length;
  return static_cast<float>(at_least * (1.0 + 1e-6) / longest_int16(d));
}

// Pads the integers to pairs, and writes the last unit.
static inline void finish_int16(float step, int64_t d, uint32_t* units) {
  if (d % 2 == 1) reinterpret_cast<int16_t*>(units)[d] = 0;
  reinterpret_cast<float*>(units)[(d + 1) / 2] = step * 0x1p15f;
}

// Packs any row: in double, one element at a time.
template <class Storage>
void pack_int16_carefully(const Storage* row, int64_t d, double scale, uint32_t* units,
                          double* squared, double* lost) {
  *squared = 0.0;
  *lost = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    const double exact = widen(row[i]) * scale;
    *squared += exact * exact;
  }
  *squared = above_zero(*squared, row, d, scale);
  const bool packed = *squared < kMostInt16Length * kMostInt16Length;  // false for NaN, too
  const float step = int16_step(packed ? __builtin_sqrt(*squared) : 0.0, d);
  const double inverse = 1.0 / step;
  int16_t* const integers = reinterpret_cast<int16_t*>(units);
  for (int64_t i = 0; i < d; ++i) {
    const double exact = packed ? widen(row[i]) * scale : 0.0, steps = exact * inverse;
    integers[i] = static_cast<int16_t>(steps < 0.0 ? steps - 0.5 : steps + 0.5);
    const double rest = exact - static_cast<double>(integers[i]) * step;
    *lost += rest * rest;
  }
  if (!packed) *lost = __builtin_inf();
  finish_int16(step, d, units);
}

// Packs a row in float. Returns false, with the units undefined, if sums of squares could overflow,
// or underflow could affect them.
template <class Storage>
bool pack_int16_fast(const Storage* row, int64_t d, uint32_t* units, double* squared,
                     double* lost) {
  using V = Vector<float>;
  const auto load = [&](int64_t i) {
    return i + V::kLanes <= d ? V::load(row + i) : V::load_first(row + i, d - i);
  };
  // Bounds the rounding of the sums of d / kLanes terms and of their combination.
  const double inflate = 1.0 + static_cast<double>(d / V::kLanes + 8) / (1 << 24);
  V squares = V::zero(), more_squares = V::zero();
  for (int64_t i = 0; i < d; i += 2 * V::kLanes) {
    const V x = load(i);
    squares = V::fma(x, x, squares);
    if (i + V::kLanes >= d) break;
    const V next = load(i + V::kLanes);
    more_squares = V::fma(next, next, more_squares);
  }
  *squared = (squares + more_squares).sum() * inflate;
  if (!(*squared > 1e-20 && *squared < 1e30)) return false;
  const float step = int16_step(__builtin_sqrt(*squared), d);
  // Adding and subtracting 1.5 * 2^23 rounds a smaller float to an integer.
  const V inverse = V::fill(1.0f / step), less = V::fill(-step), round = V::fill(0x1.8p23f);
  int16_t* const integers = reinterpret_cast<int16_t*>(units);
  V losses = V::zero();
  for (int64_t i = 0; i < d; i += V::kLanes) {
    const V x = load(i);
    const V steps = (x * inverse + round) - round;
    const V rest = V::fma(steps, less, x);
    losses = V::fma(rest, rest, losses);
    alignas(64) float rounded[V::kLanes];
    steps.store(rounded);
    if (i + V::kLanes <= d) {
      for (int lane = 0; lane < V::kLanes; ++lane)
        integers[i + lane] = static_cast<int16_t>(static_cast<int32_t>(rounded[lane]));
    } else {
      for (int64_t lane = 0; lane < d - i; ++lane)
        integers[i + lane] = static_cast<int16_t>(static_cast<int32_t>(rounded[lane]));
    }
  }
  *lost = losses.sum() * inflate;
  finish_int16(step, d, units);
  return true;
}

// Packs one row; see PackKernels::Row.
template <class Storage>
void pack_int16(const Storage* row, int64_t d, double scale, uint32_t* units, double* squared,
                double* lost) {
  if constexpr (sizeof(Storage) < sizeof(double))
    if (scale == 1.0 && pack_int16_fast(row, d, units, squared, lost)) return;
  pack_int16_carefully(row, d, scale, units, squared, lost);
}

}  // namespace saefast::SAEFAST_LEVEL
