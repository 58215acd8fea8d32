// Bindings of decoder_columns.h, latent_sum.h and latent_update.h.
#include <optional>
#include <string>

#include "../decoder_columns.h"
#include "../latent_sum.h"
#include "../latent_update.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

namespace {

// Reads the operands from a saefast.types.Update.
template <class Compute>
UpdateArgs<Compute> update_args(const Record& update, const Array& input_grad_sum,
                                const Array& input_grad_parts, const Array& fired,
                                const Array& squares, StoredGradients* stored) {
  const auto [n, k] = update.sizes<2>("indices");
  const auto [m, d] = update.sizes<2>("w_enc");
  const int64_t d_out = update.sizes<2>("w_dec")[1];
  const Array group_ends = update.array("group_ends"), residual = update.array("residual");
  const bool grouped = !group_ends.is_none();
  const int64_t groups = grouped ? group_ends.sizes<1>("group_ends")[0] : 1;
  const double* const rates = update.as<const double>("rates", {2});
  const double* const sign = update.as_or_null<const double>("sign", {2});
  const double* const factor = update.as_or_null<const double>("factor", {});
  ExtraGradients<Compute> extra{};
  if (update.has_all("the extra gradients",
                     {"extra_latents", "extra_w_enc", "extra_b_enc", "extra_w_dec"})) {
    const int64_t c = update.sizes<1>("extra_latents")[0];
    extra = {update.as<const int64_t>("extra_latents", {c}), c,
             update.as<const Compute>("extra_w_enc", {c, d}),
             update.as<const Compute>("extra_b_enc", {c}),
             update.as<const Compute>("extra_w_dec", {c, d_out})};
  }
  return {update.as<const int64_t>("indices", {n, k}),
          update.as<const Compute>("values", {n, k}),
          update.as<const Compute>("value_grads", {n, k}),
          grouped ? residual.as<const Compute>("residual", {groups, n, d_out})
                  : residual.as<const Compute>("residual", {n, d_out}),
          update.as<const Compute>("inputs", {n, d}),
          n,
          k,
          d,
          m,
          d_out,
          group_ends.as_or_null<const int64_t>("group_ends", {groups}),
          groups,
          update.as<Compute>("w_enc", {m, d}),
          update.as<Compute>("b_enc", {m}),
          update.as<Compute>("w_dec", {m, d_out}),
          {update.as<Compute>("w_enc_first", {m, d}), update.as<Compute>("w_enc_second", {m, d})},
          {update.as<Compute>("b_enc_first", {m}), update.as<Compute>("b_enc_second", {m})},
          {update.as<Compute>("w_dec_first", {m, d_out}),
           update.as<Compute>("w_dec_second", {m, d_out})},
          extra,
          rates[0],
          rates[1],
          update.get<double>("beta1"),
          update.get<double>("beta2"),
          update.get<double>("eps"),
          update.get<bool>("unit_norm"),
          update.get<bool>("remove_parallel"),
          update.get<bool>("update_encoder"),
          update.get<bool>("update_decoder"),
          {update.as_or_null<const Compute>("shrink_enc", {m}),
           static_cast<Compute>(sign == nullptr ? 0 : sign[0])},
          {update.as_or_null<const Compute>("shrink_dec", {m}),
           static_cast<Compute>(sign == nullptr ? 0 : sign[1])},
          factor == nullptr ? 1.0 : *factor,
          input_grad_sum.as_or_null<Compute>("input_grad_sum", {d}),
          input_grad_parts.as_or_null<Compute>("input_grad_parts",
                                               {(m + kLatentsPerTask - 1) / kLatentsPerTask, d}),
          fired.as_or_null<int64_t>("fired", {m}),
          squares.as_or_null<double>("squares", {m}),
          stored};
}

ColumnsPass columns_pass_named(const std::string& name) {
  if (name == "along") return ColumnsPass::along;
  if (name == "squares") return ColumnsPass::squares;
  if (name == "update") return ColumnsPass::update;
  throw py::value_error("wanted must be along, squares or update, got '" + name + "'");
}

}  // namespace

void bind_latents(py::module_& module) {
  module.def(
      "latent_sum",
      [](const Array& values, const Array& indices, const Array& rows, const Array& sums,
         int threads) {
        with_storage("rows", rows, [&](auto storage) {
          using Storage = decltype(storage);
          const auto [n, k] = values.sizes<2>("values");
          const auto [m, d] = sums.sizes<2>("sums");
          const Storage* const factors = values.as<const Storage>("values", {n, k});
          const int64_t* const latents = indices.as<const int64_t>("indices", {n, k});
          const Storage* const summands = rows.as<const Storage>("rows", {n, d});
          Storage* const out = sums.as<Storage>("sums", {m, d});
          py::gil_scoped_release release;
          latent_sum(factors, latents, summands, n, k, d, m, out, threads);
        });
      },
      "values"_a, "indices"_a, "rows"_a, "sums"_a, "threads"_a);
  py::class_<StoredGradients>(module, "StoredGradients")
      .def(py::init<int64_t, int64_t, int64_t>(), "latents"_a, "width"_a, "item"_a);
  module.def(
      "latent_update",
      [](py::handle record, const Array& input_grad_sum, const Array& input_grad_parts,
         const Array& fired, const Array& squares, StoredGradients* stored, int threads) {
        const Record update(record);
        const Screen screen = screen_named(update.get<std::string>("product"));
        with_compute("w_enc", update.array("w_enc"), [&](auto compute) {
          const auto args = update_args<decltype(compute)>(update, input_grad_sum, input_grad_parts,
                                                           fired, squares, stored);
          if (stored != nullptr &&
              !stored->fits<decltype(compute)>(args.m, args.d_out + args.d + 1))
            throw py::value_error("stored must have room for the gradients of w_enc and w_dec");
          std::optional<Panels> packed;
          const bool updates = squares.is_none();
          if (updates && update.has_all("units, norm and lost", {"units", "norm", "lost"}))
            packed = panels_of(update.array("units"), update.array("norm"), update.array("lost"),
                               screen, args.d, args.m);
          py::gil_scoped_release release;
          latent_update(args, screen, packed ? &*packed : nullptr, threads);
        });
      },
      "update"_a, "input_grad_sum"_a, "input_grad_parts"_a, "fired"_a, "squares"_a, "stored"_a,
      "threads"_a);
  module.def(
      "decoder_columns",
      [](py::handle record, const std::string& wanted, int64_t width, int ranks, const Array& along,
         const Array& extra_along, const Array& partial, int threads) {
        const Record update(record);
        with_compute("w_dec", update.array("w_dec"), [&](auto compute) {
          using Compute = decltype(compute);
          const auto args =
              update_args<Compute>(update, Array(), Array(), Array(), Array(), nullptr);
          const ColumnsArgs<Compute> columns{
              width, ranks, along.as_or_null<const Compute>("along", {args.m}),
              extra_along.as_or_null<const Compute>("extra_along", {args.extra.count}),
              partial.as<Compute>("partial", {args.m})};
          if (args.extra.count > 0 && columns.along == nullptr && columns.extra_along == nullptr)
            throw py::value_error("extra_along must be given with extra gradients");
          const ColumnsPass which = columns_pass_named(wanted);
          py::gil_scoped_release release;
          decoder_columns(args, columns, which, threads);
        });
      },
      "update"_a, "wanted"_a, "width"_a, "ranks"_a, "along"_a, "extra_along"_a, "partial"_a,
      "threads"_a);
}

}  // namespace saefast
