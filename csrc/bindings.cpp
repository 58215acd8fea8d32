// The functions above as `saefast._native`. Arrays come as addresses of contiguous memory; the
// Python side, saefast/ops, has checked shapes, types and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "assignment.h"
#include "encode.h"
#include "isa.h"
#include "latent_sum.h"
#include "latent_update.h"
#include "panels.h"
#include "row_select.h"
#include "sparse_decode.h"
#include "tile_screen.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {
namespace {

using Address = uintptr_t;  // 0 is null

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls body(T()) for the C++ type that a dtype's name stands for.
template <class Body>
auto with_storage(const std::string& dtype, const Body& body) {
  if (dtype == "float32") return body(float());
  if (dtype == "float64") return body(double());
  if (dtype == "bfloat16") return body(bf16());
  throw std::invalid_argument("unknown dtype " + dtype);
}
template <class Body>
auto with_compute(const std::string& dtype, const Body& body) {
  if (dtype == "float32") return body(float());
  if (dtype == "float64") return body(double());
  throw std::invalid_argument("unknown dtype " + dtype);
}

Screen screen_named(const std::string& name) {
  if (name == "float32") return Screen::float32;
  if (name == "bfloat16") return Screen::bfloat16;
  if (name == "int16") return Screen::int16;
  throw std::invalid_argument("unknown screen " + name);
}

Panels panels_at(Address units, Address norm, Address lost) {
  return {at<uint32_t>(units), at<float>(norm), at<float>(lost)};
}

template <class Storage>
EncodeArgs<Storage> encode_args(Address x, Address weight, Address bias, Address scale,
                                Address threshold, int64_t n, int64_t d, int64_t m, int64_t k,
                                Address values, Address indices, Address counts, bool rescore) {
  return {at<Storage>(x),
          at<Storage>(weight),
          at<Storage>(bias),
          at<Storage>(scale),
          at<compute_t<Storage>>(threshold),
          n,
          d,
          m,
          k,
          at<Storage>(values),
          at<int64_t>(indices),
          at<int64_t>(counts),
          rescore};
}

void bind_encode(py::module_& module) {
  module.def(
      "encode",
      [](const std::string& dtype, Address x, Address weight, Address bias, Address scale,
         Address threshold, int64_t n, int64_t d, int64_t m, int64_t k, Address values,
         Address indices, Address counts, bool rescore, const std::string& screen, Address units,
         Address norm, Address lost, int threads) {
        py::gil_scoped_release release;
        with_storage(dtype, [&](auto storage) {
          const auto args = encode_args<decltype(storage)>(x, weight, bias, scale, threshold, n, d,
                                                           m, k, values, indices, counts, rescore);
          const Panels panels = panels_at(units, norm, lost);
          encode(args, screen_named(screen), units ? &panels : nullptr, threads);
        });
      },
      "dtype"_a, "x"_a, "weight"_a, "bias"_a, "scale"_a, "threshold"_a, "n"_a, "d"_a, "m"_a, "k"_a,
      "values"_a, "indices"_a, "counts"_a, "rescore"_a, "screen"_a, "units"_a, "norm"_a, "lost"_a,
      "threads"_a);
  py::class_<TileScreen>(module, "TileScreen")
      .def(py::init([](const std::string& dtype, Address x, Address weight, Address bias,
                       Address scale, Address threshold, int64_t n, int64_t d, int64_t m, int64_t k,
                       Address values, Address indices, Address counts, const std::string& screen,
                       int threads) {
             py::gil_scoped_release release;
             return with_storage(dtype, [&](auto storage) {
               return tile_screen(
                   encode_args<decltype(storage)>(x, weight, bias, scale, threshold, n, d, m, k,
                                                  values, indices, counts, true),
                   screen_named(screen), threads);
             });
           }),
           "dtype"_a, "x"_a, "weight"_a, "bias"_a, "scale"_a, "threshold"_a, "n"_a, "d"_a, "m"_a,
           "k"_a, "values"_a, "indices"_a, "counts"_a, "screen"_a, "threads"_a)
      .def(
          "feed",
          [](TileScreen& self, Address scores, int64_t stride, int64_t row, int64_t rows,
             int64_t column, int64_t columns, int threads) {
            self.feed(at<float>(scores), stride, row, rows, column, columns, threads);
          },
          py::call_guard<py::gil_scoped_release>(), "scores"_a, "stride"_a, "row"_a, "rows"_a,
          "column"_a, "columns"_a, "threads"_a)
      .def("finish", &TileScreen::finish, py::call_guard<py::gil_scoped_release>(), "row"_a,
           "rows"_a, "threads"_a);
  module.def(
      "panel_units",
      [](const std::string& screen, int64_t d, int64_t m) {
        return panel_units(plan_screen(active_kernels(), screen_named(screen)), d, m);
      },
      "screen"_a, "d"_a, "m"_a);
  module.def(
      "pack_weight",
      [](const std::string& dtype, const std::string& screen, Address weight, Address scale,
         int64_t d, int64_t m, Address units, Address norm, Address lost, int threads) {
        py::gil_scoped_release release;
        with_storage(dtype, [&](auto storage) {
          using Storage = decltype(storage);
          pack_weight<Storage>(active_kernels(), screen_named(screen), at<Storage>(weight),
                               at<Storage>(scale), d, m, panels_at(units, norm, lost), threads);
        });
      },
      "dtype"_a, "screen"_a, "weight"_a, "scale"_a, "d"_a, "m"_a, "units"_a, "norm"_a, "lost"_a,
      "threads"_a);
}

void bind_decode(py::module_& module) {
  module.def(
      "sparse_decode",
      [](const std::string& dtype, Address values, Address indices, Address weight, Address bias,
         int64_t n, int64_t k, int64_t d, int64_t m, Address out, int threads) {
        py::gil_scoped_release release;
        with_storage(dtype, [&](auto storage) {
          using Storage = decltype(storage);
          sparse_decode<Storage>({at<Storage>(values), at<int64_t>(indices), at<Storage>(weight),
                                  at<Storage>(bias), n, k, d, m},
                                 at<Storage>(out), threads);
        });
      },
      "dtype"_a, "values"_a, "indices"_a, "weight"_a, "bias"_a, "n"_a, "k"_a, "d"_a, "m"_a, "out"_a,
      "threads"_a);
  module.def(
      "gather_dots",
      [](const std::string& dtype, Address rows, Address weight, Address indices, int64_t n,
         int64_t k, int64_t d, int64_t m, Address out, int threads) {
        py::gil_scoped_release release;
        with_storage(dtype, [&](auto storage) {
          using Storage = decltype(storage);
          gather_dots<Storage>(at<Storage>(rows), at<Storage>(weight), at<int64_t>(indices), n, k,
                               d, m, at<Storage>(out), threads);
        });
      },
      "dtype"_a, "rows"_a, "weight"_a, "indices"_a, "n"_a, "k"_a, "d"_a, "m"_a, "out"_a,
      "threads"_a);
  module.def(
      "decode_residual",
      [](const std::string& dtype, Address values, Address indices, Address weight, Address bias,
         int64_t n, int64_t k, int64_t d, int64_t m, Address target, double factor,
         Address residual, Address value_grads, int threads) {
        py::gil_scoped_release release;
        return with_compute(dtype, [&](auto compute) {
          using Compute = decltype(compute);
          return decode_residual<Compute>({at<Compute>(values), at<int64_t>(indices),
                                           at<Compute>(weight), at<Compute>(bias), n, k, d, m},
                                          at<Compute>(target), static_cast<Compute>(factor),
                                          at<Compute>(residual), at<Compute>(value_grads), threads);
        });
      },
      "dtype"_a, "values"_a, "indices"_a, "weight"_a, "bias"_a, "n"_a, "k"_a, "d"_a, "m"_a,
      "target"_a, "factor"_a, "residual"_a, "value_grads"_a, "threads"_a);
}

void bind_latents(py::module_& module) {
  module.def(
      "latent_sum",
      [](const std::string& dtype, Address values, Address indices, Address rows, int64_t n,
         int64_t k, int64_t d, int64_t m, Address sums, int threads) {
        py::gil_scoped_release release;
        with_storage(dtype, [&](auto storage) {
          using Storage = decltype(storage);
          latent_sum<Storage>(at<Storage>(values), at<int64_t>(indices), at<Storage>(rows), n, k, d,
                              m, at<Storage>(sums), threads);
        });
      },
      "dtype"_a, "values"_a, "indices"_a, "rows"_a, "n"_a, "k"_a, "d"_a, "m"_a, "sums"_a,
      "threads"_a);
  using Pair = std::pair<Address, Address>;
  module.def(
      "latent_update",
      [](const std::string& dtype, Address indices, Address values, Address value_grads,
         Address residual, Address inputs, int64_t n, int64_t k, int64_t d, int64_t m,
         int64_t d_out, Address group_ends, int64_t groups, Address w_enc, Address b_enc,
         Address w_dec, Pair w_enc_moments, Pair b_enc_moments, Pair w_dec_moments,
         Address extra_latents, int64_t extra_count, Address extra_w_enc, Address extra_b_enc,
         Address extra_w_dec, double step_size, double root, double beta1, double beta2, double eps,
         bool unit_norm, bool remove_parallel, bool update_encoder, bool update_decoder,
         Address shrink_enc, Address shrink_dec, double sign_enc, double sign_dec, double factor,
         Address input_grad_sum, Address fired, Address squares, const std::string& screen,
         Address units, Address norm, Address lost, int threads) {
        py::gil_scoped_release release;
        with_compute(dtype, [&](auto compute) {
          using Compute = decltype(compute);
          const auto moments = [](const Pair& pair) {
            return Moments<Compute>{at<Compute>(pair.first), at<Compute>(pair.second)};
          };
          const UpdateArgs<Compute> args{
              at<int64_t>(indices),
              at<Compute>(values),
              at<Compute>(value_grads),
              at<Compute>(residual),
              at<Compute>(inputs),
              n,
              k,
              d,
              m,
              d_out,
              at<int64_t>(group_ends),
              groups,
              at<Compute>(w_enc),
              at<Compute>(b_enc),
              at<Compute>(w_dec),
              moments(w_enc_moments),
              moments(b_enc_moments),
              moments(w_dec_moments),
              {at<int64_t>(extra_latents), extra_count, at<Compute>(extra_w_enc),
               at<Compute>(extra_b_enc), at<Compute>(extra_w_dec)},
              step_size,
              root,
              beta1,
              beta2,
              eps,
              unit_norm,
              remove_parallel,
              update_encoder,
              update_decoder,
              {at<Compute>(shrink_enc), static_cast<Compute>(sign_enc)},
              {at<Compute>(shrink_dec), static_cast<Compute>(sign_dec)},
              factor,
              at<Compute>(input_grad_sum),
              at<int64_t>(fired),
              at<double>(squares)};
          const Panels panels = panels_at(units, norm, lost);
          latent_update(args, screen_named(screen), units ? &panels : nullptr, threads);
        });
      },
      "dtype"_a, "indices"_a, "values"_a, "value_grads"_a, "residual"_a, "inputs"_a, "n"_a, "k"_a,
      "d"_a, "m"_a, "d_out"_a, "group_ends"_a, "groups"_a, "w_enc"_a, "b_enc"_a, "w_dec"_a,
      "w_enc_moments"_a, "b_enc_moments"_a, "w_dec_moments"_a, "extra_latents"_a, "extra_count"_a,
      "extra_w_enc"_a, "extra_b_enc"_a, "extra_w_dec"_a, "step_size"_a, "root"_a, "beta1"_a,
      "beta2"_a, "eps"_a, "unit_norm"_a, "remove_parallel"_a, "update_encoder"_a,
      "update_decoder"_a, "shrink_enc"_a, "shrink_dec"_a, "sign_enc"_a, "sign_dec"_a, "factor"_a,
      "input_grad_sum"_a, "fired"_a, "squares"_a, "screen"_a, "units"_a, "norm"_a, "lost"_a,
      "threads"_a);
}

void bind_row_select(py::module_& module) {
  module.def(
      "keep_best_row",
      [](Address scores, Address maxima, Address shift, Address norm, Address lost, Address reach,
         Address spread, Address keys, Address counts, Address floor_keys, Address floor,
         int64_t row, int32_t first, int32_t columns, int64_t width, int32_t k, int32_t capacity,
         int32_t block, bool hot, bool bounded, int32_t lanes) {
        keep_best_row(
            Screened{at<float>(scores), at<float>(maxima), at<float>(shift), at<float>(norm),
                     at<float>(lost), at<float>(reach), at<float>(spread), at<int64_t>(keys),
                     at<int32_t>(counts), at<int64_t>(floor_keys), at<float>(floor), first, columns,
                     width, k, capacity, block},
            row, hot, bounded, lanes);
      },
      py::call_guard<py::gil_scoped_release>(), "scores"_a, "maxima"_a, "shift"_a, "norm"_a,
      "lost"_a, "reach"_a, "spread"_a, "keys"_a, "counts"_a, "floor_keys"_a, "floor"_a, "row"_a,
      "first"_a, "columns"_a, "width"_a, "k"_a, "capacity"_a, "block"_a, "hot"_a, "bounded"_a,
      "lanes"_a);
  module.def(
      "choose_row",
      [](Address keys, int32_t count, int32_t k, Address values, Address indices, int32_t lanes) {
        choose_row_of(at<int64_t>(keys), count, k, at<float>(values), at<int64_t>(indices), lanes);
      },
      py::call_guard<py::gil_scoped_release>(), "keys"_a, "count"_a, "k"_a, "values"_a, "indices"_a,
      "lanes"_a);
  module.def(
      "keys_of",
      [](Address scores, int32_t count, Address keys) {
        keys_of(at<float>(scores), count, at<int64_t>(keys));
      },
      py::call_guard<py::gil_scoped_release>(), "scores"_a, "count"_a, "keys"_a);
}

void bind_assignment(py::module_& module) {
  module.def(
      "best_assignment",
      [](Address row_start, Address column, Address similarity, int64_t rows, int64_t columns,
         double floor, bool warm, double seconds, Address partner, Address row_price,
         Address column_price) {
        return best_assignment({at<int64_t>(row_start), at<int32_t>(column), at<double>(similarity),
                                rows, columns, floor, warm, seconds, at<int64_t>(partner),
                                at<double>(row_price), at<double>(column_price)});
      },
      py::call_guard<py::gil_scoped_release>(), "row_start"_a, "column"_a, "similarity"_a, "rows"_a,
      "columns"_a, "floor"_a, "warm"_a, "seconds"_a, "partner"_a, "row_price"_a, "column_price"_a);
}

}  // namespace
}  // namespace saefast

PYBIND11_MODULE(_native, module) {
  using namespace saefast;
  module.doc() = "C++ kernels of saefast for the CPU.";
  module.def("compiled_levels", &compiled_levels);
  module.def("usable_levels", &usable_levels);
  module.def("use_level", &use_level, "name"_a);
  module.def("level", active_level);
  module.def("has_int16_products", [] { return active_kernels().screen_int16.tile != nullptr; });
  module.def("has_bfloat16_products", [] { return active_kernels().screen_bf16.tile != nullptr; });
#if defined(_OPENMP)
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
  bind_encode(module);
  bind_decode(module);
  bind_latents(module);
  bind_row_select(module);
  bind_assignment(module);
}
