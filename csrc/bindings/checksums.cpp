// Bindings of xxh64.h.
#include <pybind11/stl.h>

#include "../xxh64.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

void bind_checksums(py::module_& module) {
  module.def(
      "xxh64",
      [](const std::vector<py::buffer>& pieces, int threads) {
        std::vector<py::buffer_info> held;  // keeps the memory while it is read
        std::vector<Bytes> all;
        held.reserve(pieces.size());
        all.reserve(pieces.size());
        for (const py::buffer& piece : pieces) {
          const py::buffer_info& info = held.emplace_back(piece.request());
          if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1))
            throw py::value_error("pieces must be contiguous bytes");
          all.push_back({static_cast<const unsigned char*>(info.ptr), info.size});
        }
        py::gil_scoped_release release;
        return xxh64_each(all, threads);
      },
      "pieces"_a, "threads"_a);
}

}  // namespace saefast
