// Binding of assignment.h. Outputs are written in place.
#include "../assignment.h"
#include "bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {

void bind_assignment(py::module_& module) {
  module.def(
      "best_assignment",
      [](const Array& row_start, const Array& column, const Array& similarity, double floor,
         bool warm, double seconds, const Array& partner, const Array& row_price,
         const Array& column_price) {
        const int64_t arcs = column.sizes<1>("column")[0];
        const int64_t rows = partner.sizes<1>("partner")[0];
        const int64_t columns = column_price.sizes<1>("column_price")[0];
        const AssignmentArgs args{row_start.as<const int64_t>("row_start", {rows + 1}),
                                  column.as<const int32_t>("column", {arcs}),
                                  similarity.as<const double>("similarity", {arcs}),
                                  rows,
                                  columns,
                                  floor,
                                  warm,
                                  seconds,
                                  partner.as<int64_t>("partner", {rows}),
                                  row_price.as<double>("row_price", {rows}),
                                  column_price.as<double>("column_price", {columns})};
        py::gil_scoped_release release;
        return best_assignment(args);
      },
      "row_start"_a, "column"_a, "similarity"_a, "floor"_a, "warm"_a, "seconds"_a, "partner"_a,
      "row_price"_a, "column_price"_a);
}

}  // namespace saefast
