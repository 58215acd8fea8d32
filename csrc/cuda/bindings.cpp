// The module `saefast._cuda`: the launches of select.h. Importing it calls no function of CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "select.h"

namespace py = pybind11;
using namespace py::literals;

namespace saefast {
namespace {

// Address of device memory, as from Tensor.data_ptr().
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Throws std::invalid_argument unless `capacity` is a power of two in [at_least, MOST_CAPACITY].
void check_capacity(int32_t capacity, int32_t at_least) {
  if (capacity < at_least || capacity > MOST_CAPACITY || (capacity & (capacity - 1)) != 0) {
    throw std::invalid_argument("capacity must be a power of two from " + std::to_string(at_least) +
                                " to " + std::to_string(MOST_CAPACITY) + ", got " +
                                std::to_string(capacity));
  }
}

// Returns the names of the compiled architectures.
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream joined(SAEFAST_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(joined, name, ',');) names.push_back(name);
  return names;
}

}  // namespace
}  // namespace saefast

PYBIND11_MODULE(_cuda, module) {
  using namespace saefast;
  module.doc() = "CUDA C++ kernels of saefast.";
  module.attr("architectures") = architectures();
  module.def(
      "keep_best",
      [](Address scores, Address maxima, Address shift, Address norm, Address lost, Address reach,
         Address spread, Address keys, Address counts, Address floor_keys, Address floor,
         int64_t rows, int32_t first, int32_t columns, int64_t width, int32_t k, int32_t capacity,
         int32_t block, bool hot, bool bounded, Stream stream) {
        check_capacity(capacity, k + block);
        keep_best(Screened{at<float>(scores), at<float>(maxima), at<float>(shift), at<float>(norm),
                           at<float>(lost), at<float>(reach), at<float>(spread), at<int64_t>(keys),
                           at<int32_t>(counts), at<int64_t>(floor_keys), at<float>(floor), first,
                           columns, width, k, capacity, block},
                  rows, hot, bounded, stream);
      },
      py::call_guard<py::gil_scoped_release>(), "scores"_a, "maxima"_a, "shift"_a, "norm"_a,
      "lost"_a, "reach"_a, "spread"_a, "keys"_a, "counts"_a, "floor_keys"_a, "floor"_a, "rows"_a,
      "first"_a, "columns"_a, "width"_a, "k"_a, "capacity"_a, "block"_a, "hot"_a, "bounded"_a,
      "stream"_a);
  module.def(
      "choose",
      [](Address keys, Address counts, Address values, Address indices, int64_t rows, int32_t k,
         int32_t capacity, bool bfloat16, Stream stream) {
        check_capacity(capacity, k);
        choose(Chosen{at<int64_t>(keys), at<int32_t>(counts), at<void>(values),
                      at<int64_t>(indices), k, capacity},
               rows, bfloat16, stream);
      },
      py::call_guard<py::gil_scoped_release>(), "keys"_a, "counts"_a, "values"_a, "indices"_a,
      "rows"_a, "k"_a, "capacity"_a, "bfloat16"_a, "stream"_a);
}
