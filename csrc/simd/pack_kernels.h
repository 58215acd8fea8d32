// Packing of rows for the screening GEMM; each instruction set includes this file.
#include "kernels.h"
#include "pack_int16.h"

namespace saefast::SAEFAST_LEVEL {

// Rounds to bfloat16, with subnormal results as zero: bfloat16 products treat subnormal inputs as
// zero, and so the measured loss includes them.
static inline bf16 screened_bf16(float value) {
  const bf16 rounded = narrow_to_bf16(value);
  return (rounded.bits & 0x7f80) == 0 ? bf16{0} : rounded;
}

// Packs any row: in double, one element at a time.
template <class Storage>
void pack_row_carefully(const Storage* row, int64_t d, double scale, Packing packing,
                        uint32_t* units, double* squared, double* lost) {
  float* const floats = reinterpret_cast<float*>(units);
  bf16* const halves = reinterpret_cast<bf16*>(units);
  *squared = 0.0;
  *lost = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    const double exact = widen(row[i]) * scale;
    float kept = static_cast<float>(exact);
    if (packing != Packing::float32) {
      const bf16 rounded = screened_bf16(kept);
      kept = widen(rounded);
      if (packing == Packing::bf16_pairs) halves[i] = rounded;
    }
    if (packing != Packing::bf16_pairs) floats[i] = kept;
    *squared += exact * exact;
    *lost += (exact - kept) * (exact - kept);
  }
  *squared = above_zero(*squared, row, d, scale);
}

// Bounds the squared norm of a row, and of its difference to `kept`, in float.
template <class Storage, class Kept>
void measure_loss(const Storage* row, const Kept* kept, int64_t d, double* squared, double* lost) {
  using V = Vector<float>;
  V squares = V::zero(), losses = V::zero();
  const auto add = [&](V exact, V rounded) {
    const V rest = exact - rounded;
    squares = V::fma(exact, exact, squares);
    losses = V::fma(rest, rest, losses);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= d; i += V::kLanes) add(V::load(row + i), V::load(kept + i));
  if (i < d) add(V::load_first(row + i, d - i), V::load_first(kept + i, d - i));
  // Bounds the rounding of the sums of d / kLanes terms and of their combination.
  const double inflate = 1.0 + static_cast<double>(d / V::kLanes + 8) / (1 << 24);
  *squared = squares.sum() * inflate;
  *lost = losses.sum() * inflate;
}

// Packs one row; see PackKernels::Row.
template <class Storage>
void pack_row(const Storage* row, int64_t d, double scale, Packing packing, uint32_t* units,
              double* squared, double* lost) {
  if (packing == Packing::int16_pairs) return pack_int16(row, d, scale, units, squared, lost);
  float* const floats = reinterpret_cast<float*>(units);
  bf16* const halves = reinterpret_cast<bf16*>(units);
  if (packing == Packing::bf16_pairs && d % 2 == 1) halves[d] = bf16{0};
  if constexpr (sizeof(Storage) < sizeof(double)) {
    if (scale == 1.0) {
      if (packing == Packing::bf16_pairs) {
        for (int64_t i = 0; i < d; ++i) halves[i] = screened_bf16(widen(row[i]));
        measure_loss(row, halves, d, squared, lost);
      } else {
        const bool round = packing == Packing::bf16_as_float;
        for (int64_t i = 0; i < d; ++i)
          floats[i] = round ? widen(screened_bf16(widen(row[i]))) : widen(row[i]);
        measure_loss(row, floats, d, squared, lost);
      }
      // Float sums can neither overflow nor be affected by underflow here.
      if (*squared > 1e-20 && *squared < 1e30) return;
      if (*squared == 0.0 && all_zero(row, d)) return;
    }
  }
  pack_row_carefully(row, d, scale, packing, units, squared, lost);
}

// See PackKernels::interleave.
static void interleave(const uint32_t* from, int64_t rows, int64_t units, int64_t width,
                       uint32_t* to) {
  constexpr int64_t kBlock = 16;  // reads and writes whole cache lines
  for (int64_t u = 0; u < units; u += kBlock) {
    const int64_t end = u + kBlock < units ? u + kBlock : units;
    for (int64_t row = 0; row < width; ++row)
      for (int64_t unit = u; unit < end; ++unit)
        to[unit * width + row] = row < rows ? from[row * units + unit] : 0;
  }
}

static PackKernels pack_kernels() {
  return {pack_row<float>, pack_row<double>, pack_row<bf16>, interleave};
}

}  // namespace saefast::SAEFAST_LEVEL
