// Bindings of sparse_decode.h.
#include "../sparse_decode.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

namespace {

template <class Storage>
DecodeArgs<Storage> decode_args(const Array& values, const Array& indices, const Array& weight,
                                const Array& bias) {
  const auto [n, k] = values.sizes<2>("values");
  const auto [m, d] = weight.sizes<2>("weight");
  return {values.as<const Storage>("values", {n, k}),
          indices.as<const int64_t>("indices", {n, k}),
          weight.as<const Storage>("weight", {m, d}),
          bias.as_or_null<const Storage>("bias", {d}),
          n,
          k,
          d,
          m};
}

}  // namespace

void bind_decode(py::module_& module) {
  module.def(
      "sparse_decode",
      [](const Array& values, const Array& indices, const Array& weight, const Array& bias,
         const Array& out, int threads) {
        with_storage("weight", weight, [&](auto storage) {
          using Storage = decltype(storage);
          const auto args = decode_args<Storage>(values, indices, weight, bias);
          Storage* const decoded = out.as<Storage>("out", {args.n, args.d});
          py::gil_scoped_release release;
          sparse_decode(args, decoded, threads);
        });
      },
      "values"_a, "indices"_a, "weight"_a, "bias"_a, "out"_a, "threads"_a);
  module.def(
      "gather_dots",
      [](const Array& rows, const Array& weight, const Array& indices, const Array& out,
         int threads) {
        with_storage("weight", weight, [&](auto storage) {
          using Storage = decltype(storage);
          const auto [n, k] = indices.sizes<2>("indices");
          const auto [m, d] = weight.sizes<2>("weight");
          const Storage* const left = rows.as<const Storage>("rows", {n, d});
          const Storage* const right = weight.as<const Storage>("weight", {m, d});
          const int64_t* const pairs = indices.as<const int64_t>("indices", {n, k});
          Storage* const dots = out.as<Storage>("out", {n, k});
          py::gil_scoped_release release;
          gather_dots(left, right, pairs, n, k, d, m, dots, threads);
        });
      },
      "rows"_a, "weight"_a, "indices"_a, "out"_a, "threads"_a);
  module.def(
      "partial_dots",
      [](const Array& rows, const Array& weight, const Array& indices, int64_t width, int ranks,
         const Array& out, int threads) {
        with_compute("weight", weight, [&](auto compute) {
          using Compute = decltype(compute);
          const auto [n, k] = indices.sizes<2>("indices");
          const auto [m, columns] = weight.sizes<2>("weight");
          const Compute* const left = rows.as<const Compute>("rows", {n, columns});
          const Compute* const right = weight.as<const Compute>("weight", {m, columns});
          const int64_t* const pairs = indices.as<const int64_t>("indices", {n, k});
          Compute* const dots = out.as<Compute>("out", {n, k});
          py::gil_scoped_release release;
          partial_dots(left, right, pairs, n, k, width, columns, m, ranks, dots, threads);
        });
      },
      "rows"_a, "weight"_a, "indices"_a, "width"_a, "ranks"_a, "out"_a, "threads"_a);
  module.def(
      "decode_residual",
      [](const Array& values, const Array& indices, const Array& weight, const Array& bias,
         const Array& target, double factor, const Array& residual, const Array& value_grads,
         int threads) {
        return with_compute("weight", weight, [&](auto compute) {
          using Compute = decltype(compute);
          const auto args = decode_args<Compute>(values, indices, weight, bias);
          const Compute* const wanted = target.as<const Compute>("target", {args.n, args.d});
          Compute* const error = residual.as<Compute>("residual", {args.n, args.d});
          Compute* const grads = value_grads.as<Compute>("value_grads", {args.n, args.k});
          py::gil_scoped_release release;
          return decode_residual(args, wanted, static_cast<Compute>(factor), error, grads, threads);
        });
      },
      "values"_a, "indices"_a, "weight"_a, "bias"_a, "target"_a, "factor"_a, "residual"_a,
      "value_grads"_a, "threads"_a);
}

}  // namespace saefast
