// A weight matrix packed for the screening GEMM, with what bounds the error of its scores.
#pragma once
#include <cstdint>

#include "simd/kernels.h"

namespace saefast {

// Which product screens: `bfloat16` uses the processor's bfloat16 products, or emulates them with
// float products of rounded operands where it has none. `int16` is for exact encodes only.
enum class Screen { float32, bfloat16, int16 };

struct ScreenPlan {
  ScreenKernels tile;
  Packing packing;
  int64_t units_of(int64_t d) const {
    const bool in_pairs = packing == Packing::bf16_pairs || packing == Packing::int16_pairs;
    return in_pairs ? (d + 1) / 2 + (packing == Packing::int16_pairs ? 1 : 0) : d;
  }
};
// Throws std::invalid_argument where the instruction set has no such product.
ScreenPlan plan_screen(const Kernels& kernels, Screen screen);

// Columns of scores are rows of the weight; `tile.columns` of them make a panel [units][columns].
struct Panels {
  uint32_t* units;  // panels * units_of(d) * tile.columns
  float* norm;      // [m] Euclidean norm of each scaled row, rounded up
  float* lost;      // [m] norm of what rounding took from it, rounded up
};

int64_t panel_count(const ScreenPlan& plan, int64_t m);
int64_t panel_units(const ScreenPlan& plan, int64_t d, int64_t m);

// Packs panel `panel` of weight [m, d], each row times scale[row] where scale is given. Returns
// the first row with a value that is not finite, or -1. `scratch` holds columns * units_of(d).
template <class Storage>
int64_t pack_panel(const Kernels& kernels, const ScreenPlan& plan, const Storage* weight,
                   const Storage* scale, int64_t d, int64_t m, int64_t panel, const Panels& out,
                   uint32_t* scratch);

// All panels. Throws std::invalid_argument if a row is not finite.
template <class Storage>
void pack_weight(const Kernels& kernels, Screen screen, const Storage* weight, const Storage* scale,
                 int64_t d, int64_t m, const Panels& out, int threads);

// A float that is at least `value` and no more than a millionth above it.
float rounded_up(double value);

}  // namespace saefast
