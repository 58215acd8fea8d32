// Bindings of xxh64.h.
#include <pybind11/stl.h>

#include "../xxh64.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

namespace {

Bytes bytes_of(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1))
    throw py::value_error("pieces must be contiguous bytes");
  return {static_cast<const unsigned char*>(info.ptr), info.size};
}

}  // namespace

void bind_checksums(py::module_& module) {
  module.def(
      "xxh64",
      [](const std::vector<py::buffer>& pieces, int threads) {
        std::vector<py::buffer_info> held;  // keeps the memory while it is read
        std::vector<Bytes> all;
        held.reserve(pieces.size());
        all.reserve(pieces.size());
        for (const py::buffer& piece : pieces)
          all.push_back(bytes_of(held.emplace_back(piece.request())));
        py::gil_scoped_release release;
        return xxh64_each(all, threads);
      },
      "pieces"_a, "threads"_a);
  py::class_<Xxh64>(module, "Xxh64")
      .def(py::init<>())
      .def(
          "add",
          [](Xxh64& sum, const py::buffer& piece) {
            const py::buffer_info held = piece.request();
            const Bytes bytes = bytes_of(held);
            py::gil_scoped_release release;
            sum.add(bytes);
          },
          "piece"_a)
      .def("value", &Xxh64::value);
}

}  // namespace saefast
