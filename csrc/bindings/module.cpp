// The module `saefast._native`: kernels for the CPU.
#include "bindings.h"

#include <pybind11/stl.h>

#include "../isa.h"

using namespace pybind11::literals;

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
  bind_checksums(module);
}
