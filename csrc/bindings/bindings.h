// The parts of the module `saefast._native`. Sizes follow from the shapes of tensors, which are
// checked here; saefast/ops makes tensors contiguous. Long computations release the GIL.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../panels.h"
#include "array.h"

namespace saefast {

void bind_assignment(pybind11::module_& module);
void bind_checksums(pybind11::module_& module);
void bind_decode(pybind11::module_& module);
void bind_encode(pybind11::module_& module);
void bind_latents(pybind11::module_& module);
void bind_row_select(pybind11::module_& module);

// Returns the screen with this name; throws ValueError if there is none.
Screen screen_named(const std::string& name);

// Returns the panels of a weight [m, d] packed for `screen`, whose memory the arrays hold; throws
// ValueError if their sizes differ.
Panels panels_of(const Array& units, const Array& norm, const Array& lost, Screen screen, int64_t d,
                 int64_t m);

}  // namespace saefast
