// Bindings of row_select.h: the logic of the CUDA kernels, for tests.
#include <algorithm>

#include "../row_select.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

void bind_row_select(py::module_& module) {
  module.def(
      "keep_best_row",
      [](const Array& scores, const Array& maxima, const Array& shift, const Array& norm,
         const Array& lost, const Array& reach, const Array& spread, const Array& keys,
         const Array& counts, const Array& floor_keys, const Array& floor, int64_t row,
         int32_t first, int32_t columns, int32_t k, int32_t block, bool hot, bool bounded,
         int32_t lanes) {
        const auto [rows, width] = scores.sizes<2>("scores");
        const int64_t capacity = keys.sizes<2>("keys")[1], latents = shift.sizes<1>("shift")[0];
        const Screened screened{scores.as<const float>("scores", {rows, width}),
                                maxima.as<const float>("maxima", {rows, width / GROUP}),
                                shift.as<const float>("shift", {latents}),
                                norm.as<const float>("norm", {latents}),
                                lost.as<const float>("lost", {latents}),
                                reach.as<const float>("reach", {rows}),
                                spread.as<const float>("spread", {rows}),
                                keys.as<int64_t>("keys", {rows, capacity}),
                                counts.as<int32_t>("counts", {rows}),
                                floor_keys.as<int64_t>("floor_keys", {rows}),
                                floor.as<float>("floor", {rows}),
                                first,
                                columns,
                                width,
                                k,
                                static_cast<int32_t>(capacity),
                                block};
        py::gil_scoped_release release;
        keep_best_row(screened, row, hot, bounded, lanes);
      },
      "scores"_a, "maxima"_a, "shift"_a, "norm"_a, "lost"_a, "reach"_a, "spread"_a, "keys"_a,
      "counts"_a, "floor_keys"_a, "floor"_a, "row"_a, "first"_a, "columns"_a, "k"_a, "block"_a,
      "hot"_a, "bounded"_a, "lanes"_a);
  module.def(
      "choose_row",
      [](const Array& keys, int32_t count, const Array& values, const Array& indices,
         int32_t lanes) {
        const int64_t k = values.sizes<1>("values")[0];
        const int64_t* const list = keys.as<const int64_t>("keys", {std::max(count, 0)});
        float* const best = values.as<float>("values", {k});
        int64_t* const places = indices.as<int64_t>("indices", {k});
        py::gil_scoped_release release;
        choose_row_of(list, count, static_cast<int32_t>(k), best, places, lanes);
      },
      "keys"_a, "count"_a, "values"_a, "indices"_a, "lanes"_a);
  module.def(
      "keys_of",
      [](const Array& scores, const Array& keys) {
        const int64_t count = scores.sizes<1>("scores")[0];
        keys_of(scores.as<const float>("scores", {count}), static_cast<int32_t>(count),
                keys.as<int64_t>("keys", {count}));
      },
      "scores"_a, "keys"_a);
}

}  // namespace saefast
