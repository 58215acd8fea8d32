// Tensors as arguments of functions that pybind11 binds, without linking torch.
//
// Everything here needs the GIL, and throws TypeError or ValueError with the name of the argument.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>

#include "../storage.h"

namespace saefast {

enum class Dtype { float32, float64, bfloat16, int32, int64, other };

template <class T>
inline constexpr Dtype kDtype = Dtype::other;
template <>
inline constexpr Dtype kDtype<float> = Dtype::float32;
template <>
inline constexpr Dtype kDtype<double> = Dtype::float64;
template <>
inline constexpr Dtype kDtype<bf16> = Dtype::bfloat16;
template <>
inline constexpr Dtype kDtype<int32_t> = Dtype::int32;
template <>
inline constexpr Dtype kDtype<int64_t> = Dtype::int64;

using Sizes = std::initializer_list<int64_t>;

// A view of a tensor: its memory, shape and dtype; or None. The tensor must outlive it.
class Array {
 public:
  Array() = default;  // None
  // No value where `object` is neither a tensor nor None.
  static std::optional<Array> of(pybind11::handle object);

  bool is_none() const { return !tensor_; }
  Dtype dtype(const char* name) const;
  [[noreturn]] void refuse_dtype(const char* name, const char* expected) const;

  // The shape of an array that must have that many dimensions.
  template <size_t dimensions>
  std::array<int64_t, dimensions> sizes(const char* name) const {
    static_assert(dimensions <= kDimensions);
    check_dimensions(name, dimensions);
    std::array<int64_t, dimensions> found;
    for (size_t axis = 0; axis < dimensions; ++axis) found[axis] = shape_[axis];
    return found;
  }

  // The elements, row after row. They must be of type T, in memory of the CPU without gaps; T is
  // const where they are only read.
  template <class T>
  T* as(const char* name, Sizes shape) const {
    check(name, kDtype<std::remove_const_t<T>>, !std::is_const_v<T>, shape);
    return static_cast<T*>(data_);
  }
  // The same, or null for None.
  template <class T>
  T* as_or_null(const char* name, Sizes shape) const {
    return is_none() ? nullptr : as<T>(name, shape);
  }

 private:
  static constexpr size_t kDimensions = 3;

  bool view();  // by DLPack; false where that is not possible
  void ask();   // by Python's attributes, which takes ten times as long
  void check_given(const char* name) const;
  void check_dimensions(const char* name, size_t dimensions) const;
  void check(const char* name, Dtype dtype, bool in_place, Sizes shape) const;

  pybind11::handle tensor_;
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::other;
  bool on_cpu_ = false, contiguous_ = false;
  size_t dimensions_ = 0;
  std::array<int64_t, kDimensions> shape_ = {};  // of the first dimensions
};

// The fields of a Python record, such as a named tuple. Names are literals.
class Record {
 public:
  explicit Record(pybind11::handle record) : record_(record) {}

  Array array(const char* name) const;
  template <class T>
  T get(const char* name) const {
    return field(name).cast<T>();
  }

  // See `Array`.
  template <size_t dimensions>
  std::array<int64_t, dimensions> sizes(const char* name) const {
    return array(name).sizes<dimensions>(name);
  }
  template <class T>
  T* as(const char* name, Sizes shape) const {
    return array(name).as<T>(name, shape);
  }
  template <class T>
  T* as_or_null(const char* name, Sizes shape) const {
    return array(name).as_or_null<T>(name, shape);
  }

  // Whether all of these arrays are there; an error if only some are.
  bool has_all(const char* what, std::initializer_list<const char*> names) const;

 private:
  pybind11::object field(const char* name) const;

  pybind11::handle record_;
};

// Calls body(T()) for the C++ type of an array's elements, which may be of half precision.
template <class Body>
auto with_storage(const char* name, const Array& array, const Body& body) {
  switch (array.dtype(name)) {
    case Dtype::float32:
      return body(float());
    case Dtype::float64:
      return body(double());
    case Dtype::bfloat16:
      return body(bf16());
    default:
      array.refuse_dtype(name, "float32, float64 or bfloat16");
  }
}
template <class Body>
auto with_compute(const char* name, const Array& array, const Body& body) {
  switch (array.dtype(name)) {
    case Dtype::float32:
      return body(float());
    case Dtype::float64:
      return body(double());
    default:
      array.refuse_dtype(name, "float32 or float64");
  }
}

}  // namespace saefast

namespace pybind11::detail {

template <>
struct type_caster<saefast::Array> {
  PYBIND11_TYPE_CASTER(saefast::Array, const_name("torch.Tensor | None"));
  bool load(handle source, bool) {
    const std::optional<saefast::Array> found = saefast::Array::of(source);
    if (found) value = *found;
    return found.has_value();
  }
};

}  // namespace pybind11::detail
