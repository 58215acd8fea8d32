// Bindings of encode.h, tile_screen.h and panels.h.
#include <optional>
#include <stdexcept>
#include <string>

#include "../encode.h"
#include "../isa.h"
#include "../tile_screen.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

namespace {

// Returns the number of units of a weight packed at the active level.
int64_t units_for(Screen screen, int64_t d, int64_t m) {
  return panel_units(plan_screen(active_kernels(), screen), d, m);
}

template <class Storage>
EncodeArgs<Storage> encode_args(const Array& x, const Array& weight, const Array& bias,
                                const Array& scale, const Array& threshold, const Array& values,
                                const Array& indices, const Array& counts, bool rescore,
                                bool absolute) {
  const auto [m, d] = weight.sizes<2>("weight");
  const auto [n, k] = values.sizes<2>("values");
  return {x.as<const Storage>("x", {n, d}),
          weight.as<const Storage>("weight", {m, d}),
          bias.as_or_null<const Storage>("bias", {m}),
          scale.as_or_null<const Storage>("scale", {m}),
          threshold.as_or_null<const compute_t<Storage>>("threshold", {m}),
          n,
          d,
          m,
          k,
          values.as<Storage>("values", {n, k}),
          indices.as<int64_t>("indices", {n, k}),
          threshold.is_none() ? nullptr : counts.as<int64_t>("counts", {n}),
          rescore,
          absolute};
}

}  // namespace

Screen screen_named(const std::string& name) {
  if (name == "float32") return Screen::float32;
  if (name == "bfloat16") return Screen::bfloat16;
  if (name == "int16") return Screen::int16;
  throw std::invalid_argument("product must be float32, bfloat16 or int16, got '" + name + "'");
}

Panels panels_of(const Array& units, const Array& norm, const Array& lost, Screen screen, int64_t d,
                 int64_t m) {
  // Units are int32 in torch.
  int32_t* const words = units.as<int32_t>("units", {units_for(screen, d, m)});
  return {reinterpret_cast<uint32_t*>(words), norm.as<float>("norm", {m}),
          lost.as<float>("lost", {m})};
}

void bind_encode(py::module_& module) {
  module.def(
      "encode",
      [](const Array& x, const Array& weight, const Array& bias, const Array& scale,
         const Array& threshold, const Array& values, const Array& indices, const Array& counts,
         bool rescore, bool absolute, const std::string& product, const Array& units,
         const Array& norm, const Array& lost, int threads) {
        with_storage("weight", weight, [&](auto storage) {
          const auto args = encode_args<decltype(storage)>(
              x, weight, bias, scale, threshold, values, indices, counts, rescore, absolute);
          const Screen screen = screen_named(product);
          std::optional<Panels> panels;
          if (!units.is_none()) panels = panels_of(units, norm, lost, screen, args.d, args.m);
          py::gil_scoped_release release;
          encode(args, screen, panels ? &*panels : nullptr, threads);
        });
      },
      "x"_a, "weight"_a, "bias"_a, "scale"_a, "threshold"_a, "values"_a, "indices"_a, "counts"_a,
      "rescore"_a, "absolute"_a, "product"_a, "units"_a, "norm"_a, "lost"_a, "threads"_a);
  py::class_<TileScreen>(module, "TileScreen")
      .def(
          py::init([](const Array& x, const Array& weight, const Array& bias, const Array& scale,
                      const Array& threshold, const Array& values, const Array& indices,
                      const Array& counts, bool absolute, const std::string& product, int threads) {
            return with_storage("weight", weight, [&](auto storage) {
              const auto args = encode_args<decltype(storage)>(
                  x, weight, bias, scale, threshold, values, indices, counts, true, absolute);
              py::gil_scoped_release release;
              return tile_screen(args, screen_named(product), threads);
            });
          }),
          "x"_a, "weight"_a, "bias"_a, "scale"_a, "threshold"_a, "values"_a, "indices"_a,
          "counts"_a, "absolute"_a, "product"_a, "threads"_a)
      .def(
          "feed",
          [](TileScreen& self, const Array& scores, int64_t row, int64_t rows, int64_t column,
             int64_t columns, int threads) {
            const auto [height, stride] = scores.sizes<2>("scores");
            if (rows > height || columns > stride)
              throw std::invalid_argument("scores must have at least " + std::to_string(rows) +
                                          " rows and " + std::to_string(columns) +
                                          " columns, got shape (" + std::to_string(height) + ", " +
                                          std::to_string(stride) + ")");
            const float* const tile = scores.as<const float>("scores", {height, stride});
            py::gil_scoped_release release;
            self.feed(tile, stride, row, rows, column, columns, threads);
          },
          "scores"_a, "row"_a, "rows"_a, "column"_a, "columns"_a, "threads"_a)
      .def("finish", &TileScreen::finish, py::call_guard<py::gil_scoped_release>(), "row"_a,
           "rows"_a, "threads"_a);
  module.def(
      "panel_units",
      [](const std::string& product, int64_t d, int64_t m) {
        return units_for(screen_named(product), d, m);
      },
      "product"_a, "d"_a, "m"_a);
  module.def(
      "pack_weight",
      [](const std::string& product, const Array& weight, const Array& scale, const Array& units,
         const Array& norm, const Array& lost, int threads) {
        with_storage("weight", weight, [&](auto storage) {
          using Storage = decltype(storage);
          const auto [m, d] = weight.sizes<2>("weight");
          const Screen screen = screen_named(product);
          const Storage* const rows = weight.as<const Storage>("weight", {m, d});
          const Storage* const factors = scale.as_or_null<const Storage>("scale", {m});
          const Panels panels = panels_of(units, norm, lost, screen, d, m);
          py::gil_scoped_release release;
          pack_weight(active_kernels(), screen, rows, factors, d, m, panels, threads);
        });
      },
      "product"_a, "weight"_a, "scale"_a, "units"_a, "norm"_a, "lost"_a, "threads"_a);
}

}  // namespace saefast
