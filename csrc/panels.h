// A weight matrix packed for the screening GEMM, with the norms that bound the error of its scores.
#pragma once
#include <cstdint>

#include "simd/kernels.h"

namespace saefast {

// The screening product. `bfloat16` uses the processor's bfloat16 products if it has them, and
// emulates them with float products of rounded operands otherwise. `int16` is for exact encodes
// only.
enum class Screen { float32, bfloat16, int16 };

// The tile and the packing of a screen at one level.
struct ScreenPlan {
  ScreenKernels tile;
  Packing packing;
  // Returns the number of 32-bit units of a packed row of width d.
  int64_t units_of(int64_t d) const {
    const bool in_pairs = packing == Packing::bf16_pairs || packing == Packing::int16_pairs;
    return in_pairs ? (d + 1) / 2 + (packing == Packing::int16_pairs ? 1 : 0) : d;
  }
};
// Returns the plan of a screen. Throws std::invalid_argument if the instruction set lacks its
// product.
ScreenPlan plan_screen(const Kernels& kernels, Screen screen);

// A packed weight. Columns of scores are rows of the weight; `tile.columns` of them form a panel
// [units][columns].
struct Panels {
  uint32_t* units;  // [panels, units_of(d), tile.columns]
  float* norm;      // [m] Euclidean norms of the scaled rows, rounded up
  float* lost;      // [m] norms of their rounding errors, rounded up
};

// Returns the number of panels of m columns.
int64_t panel_count(const ScreenPlan& plan, int64_t m);
// Returns the number of 32-bit units of all panels.
int64_t panel_units(const ScreenPlan& plan, int64_t d, int64_t m);

// Packs panel `panel` of weight [m, d], each row times scale[row] if scale is not null. Returns the
// first row with a value that is not finite, or -1. `scratch` holds tile.columns * units_of(d)
// units. Calls for different panels may run concurrently.
template <class Storage>
int64_t pack_panel(const Kernels& kernels, const ScreenPlan& plan, const Storage* weight,
                   const Storage* scale, int64_t d, int64_t m, int64_t panel, const Panels& out,
                   uint32_t* scratch);

// Packs all panels of weight [m, d], each row times scale [m] if it is not null. Throws
// std::invalid_argument if a row is not finite; `out` is then undefined.
template <class Storage>
void pack_weight(const Kernels& kernels, Screen screen, const Storage* weight, const Storage* scale,
                 int64_t d, int64_t m, const Panels& out, int threads);

// Returns a float that is at least `value` and at most a millionth above it; infinity for large
// values, and the smallest normal float for those between it and zero: zero stands for rows of
// zeros. `value` must not be negative.
float rounded_up(double value);

}  // namespace saefast
