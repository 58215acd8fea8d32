// Tensors as arguments of functions that pybind11 binds, without linking to torch.
//
// Everything here needs the GIL. Checks throw TypeError or ValueError with the name of the
// argument, the expected and the actual value.
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

// Element types that the kernels know.
enum class Dtype { float32, float64, bfloat16, int32, int64, other };

// The Dtype of elements of type T.
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

// A view of a tensor (its memory, shape and dtype), or None. The tensor must outlive the view.
class Array {
 public:
  Array() = default;  // None
  // Returns a view of `object`; no value if it is neither a tensor nor None.
  static std::optional<Array> of(pybind11::handle object);

  bool is_none() const { return !tensor_; }
  // Returns the dtype; throws TypeError for None.
  Dtype dtype(const char* name) const;
  // Throws TypeError: `name` must be `expected`.
  [[noreturn]] void refuse_dtype(const char* name, const char* expected) const;

  // Returns the shape; throws ValueError unless there are `dimensions` dimensions.
  template <size_t dimensions>
  std::array<int64_t, dimensions> sizes(const char* name) const {
    static_assert(dimensions <= kDimensions);
    check_dimensions(name, dimensions);
    std::array<int64_t, dimensions> found;
    for (size_t axis = 0; axis < dimensions; ++axis) found[axis] = shape_[axis];
    return found;
  }

  // Returns the address of the elements, row-major. Throws unless the tensor is on the CPU and
  // contiguous, has the shape, and has elements of type T; T is const if they are only read.
  template <class T>
  T* as(const char* name, Sizes shape) const {
    check(name, kDtype<std::remove_const_t<T>>, !std::is_const_v<T>, shape);
    return static_cast<T*>(data_);
  }
  // Returns the same, or null for None.
  template <class T>
  T* as_or_null(const char* name, Sizes shape) const {
    return is_none() ? nullptr : as<T>(name, shape);
  }

 private:
  static constexpr size_t kDimensions = 3;

  bool view();  // reads the tensor by DLPack; false if that is not possible
  void ask();   // reads it by Python's attributes, which takes ten times as long
  void check_given(const char* name) const;
  void check_dimensions(const char* name, size_t dimensions) const;
  void check(const char* name, Dtype dtype, bool in_place, Sizes shape) const;

  pybind11::handle tensor_;
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::other;
  bool on_cpu_ = false, contiguous_ = false;
  size_t dimensions_ = 0;
  std::array<int64_t, kDimensions> shape_ = {};  // sizes of the first dimensions
};

// The fields of a Python record, such as a named tuple. Names must be literals.
class Record {
 public:
  explicit Record(pybind11::handle record) : record_(record) {}

  // Returns a field that must be a tensor or None.
  Array array(const char* name) const;
  // Returns a field of another type.
  template <class T>
  T get(const char* name) const {
    return field(name).cast<T>();
  }

  // The functions of `Array` for the field `name`.
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

  // Returns whether all of the fields are given; throws ValueError if only some are.
  bool has_all(const char* what, std::initializer_list<const char*> names) const;

 private:
  pybind11::object field(const char* name) const;

  pybind11::handle record_;
};

// Calls body(T()) for the C++ type T of an array's elements, which may be bfloat16 in with_storage;
// throws TypeError for other dtypes.
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
