// Packing of weights into panels.
#include "panels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "finite.h"
#include "parallel.h"

namespace saefast {

ScreenPlan plan_screen(const Kernels& kernels, Screen screen) {
  if (screen == Screen::float32) return {kernels.screen_f32, Packing::float32};
  if (screen == Screen::int16) {
    if (kernels.screen_int16.tile == nullptr)
      throw std::invalid_argument(
          "product must be float32 or bfloat16, got int16, for which this instruction set has no "
          "screen");
    return {kernels.screen_int16, Packing::int16_pairs};
  }
  if (kernels.screen_bf16.tile != nullptr) return {kernels.screen_bf16, Packing::bf16_pairs};
  return {kernels.screen_f32, Packing::bf16_as_float};
}

int64_t panel_count(const ScreenPlan& plan, int64_t m) {
  return (m + plan.tile.columns - 1) / plan.tile.columns;
}

int64_t panel_units(const ScreenPlan& plan, int64_t d, int64_t m) {
  return panel_count(plan, m) * plan.units_of(d) * plan.tile.columns;
}

float rounded_up(double value) {
  using Float = std::numeric_limits<float>;
  if (value == 0.0) return 0.0f;
  return value < Float::max() / 2 ? std::max(static_cast<float>(value * (1.0 + 1e-6)), Float::min())
                                  : INFINITY;
}

template <class Storage>
int64_t pack_panel(const Kernels& kernels, const ScreenPlan& plan, const Storage* weight,
                   const Storage* scale, int64_t d, int64_t m, int64_t panel, const Panels& out,
                   uint32_t* scratch) {
  const int64_t columns = plan.tile.columns, units = plan.units_of(d);
  const int64_t first = panel * columns, rows = std::min(columns, m - first);
  int64_t not_finite = -1;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    double squared, lost;
    pack_row_of<Storage>(kernels)(weight + row * d, d, scale ? widen(scale[row]) : 1.0,
                                  plan.packing, scratch + r * units, &squared, &lost);
    // If the norm of finite values overflows, rows are scored without a screen: this is no error.
    if (!std::isfinite(squared) && not_finite < 0 && !all_finite(weight + row * d, d))
      not_finite = row;
    out.norm[row] = rounded_up(std::sqrt(squared));
    out.lost[row] = std::isfinite(lost) ? rounded_up(std::sqrt(lost)) : INFINITY;
  }
  kernels.pack.interleave(scratch, rows, units, columns, out.units + panel * units * columns);
  return not_finite;
}

template <class Storage>
void pack_weight(const Kernels& kernels, Screen screen, const Storage* weight, const Storage* scale,
                 int64_t d, int64_t m, const Panels& out, int threads) {
  const ScreenPlan plan = plan_screen(kernels, screen);
  std::vector<std::vector<uint32_t>> scratch(
      std::max(threads, 1), std::vector<uint32_t>(plan.tile.columns * plan.units_of(d)));
  Lowest not_finite;
  parallel_for(panel_count(plan, m), threads, [&](int64_t panel, int worker) {
    const int64_t row =
        pack_panel(kernels, plan, weight, scale, d, m, panel, out, scratch[worker].data());
    if (row >= 0) not_finite.report(row);
  });
  if (not_finite.any()) throw_not_finite("weight", not_finite.value());
}

#define SAEFAST_PANELS(Storage)                                                                  \
  template int64_t pack_panel(const Kernels&, const ScreenPlan&, const Storage*, const Storage*, \
                              int64_t, int64_t, int64_t, const Panels&, uint32_t*);              \
  template void pack_weight(const Kernels&, Screen, const Storage*, const Storage*, int64_t,     \
                            int64_t, const Panels&, int);
SAEFAST_PANELS(float)
SAEFAST_PANELS(double)
SAEFAST_PANELS(bf16)
#undef SAEFAST_PANELS

}  // namespace saefast
