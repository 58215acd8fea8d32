// Views of tensors by DLPack if torch offers it, otherwise by attributes of Python.
#include "array.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <unordered_map>

#include "dlpack.h"

namespace py = pybind11;

namespace saefast {

namespace {

// Names of dtypes, in the order of `Dtype`.
constexpr std::array<const char*, 5> kDtypeNames = {"float32", "float64", "bfloat16", "int32",
                                                    "int64"};

// Python objects that every view needs, looked up once and kept until the process ends.
struct Lookups {
  py::object tensor;  // torch.Tensor
  std::array<py::object, kDtypeNames.size()> dtypes;
  const dlpack::Exchange* exchange = nullptr;  // null before torch 2.10
  Lookups() {
    const py::module_ torch = py::module_::import("torch");
    tensor = torch.attr("Tensor");
    for (size_t i = 0; i < dtypes.size(); ++i) dtypes[i] = torch.attr(kDtypeNames[i]);
    if (!py::hasattr(tensor, dlpack::kAttribute)) return;
    const py::capsule capsule = tensor.attr(dlpack::kAttribute);
    exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
    if (exchange == nullptr) throw py::error_already_set();
    if (exchange->major != dlpack::kMajor || exchange->view == nullptr) exchange = nullptr;
  }
};

const Lookups& lookups() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Lookups> storage;
  return storage.call_once_and_store_result([] { return Lookups(); }).get_stored();
}

Dtype dtype_of(py::handle dtype) {
  const auto& known = lookups().dtypes;
  for (size_t i = 0; i < known.size(); ++i)
    if (dtype.is(known[i])) return static_cast<Dtype>(i);
  return Dtype::other;
}

Dtype dtype_of(const dlpack::Tensor& tensor) {
  if (tensor.code == dlpack::kBfloat) return Dtype::bfloat16;
  const bool wide = tensor.bits == 64;
  if (!wide && tensor.bits != 32) return Dtype::other;
  if (tensor.code == dlpack::kFloat) return wide ? Dtype::float64 : Dtype::float32;
  if (tensor.code == dlpack::kInt) return wide ? Dtype::int64 : Dtype::int32;
  return Dtype::other;
}

// Returns torch.Tensor.is_contiguous().
bool is_contiguous(const dlpack::Tensor& tensor) {
  int64_t expected = 1;
  bool contiguous = true, empty = false;
  for (int32_t axis = tensor.dimensions - 1; axis >= 0; --axis) {
    empty |= tensor.shape[axis] == 0;
    contiguous &= tensor.shape[axis] == 1 || tensor.strides[axis] == expected;
    expected *= tensor.shape[axis];
  }
  return contiguous || empty;
}

std::string shown(py::handle object) { return py::str(object); }
// Formats a shape as a tuple, unlike torch.Size.
std::string shown(Sizes shape) {
  py::list sizes;
  for (const int64_t size : shape) sizes.append(size);
  return shown(py::tuple(sizes));
}
std::string shape_of(py::handle tensor) { return shown(py::tuple(py::list(tensor.attr("shape")))); }

}  // namespace

std::optional<Array> Array::of(py::handle object) {
  Array array;
  if (object.is_none()) return array;
  if (!py::isinstance(object, lookups().tensor)) return std::nullopt;
  array.tensor_ = object;
  if (!array.view()) array.ask();
  return array;
}

bool Array::view() {
  const dlpack::Exchange* const exchange = lookups().exchange;
  dlpack::Tensor tensor;
  if (exchange == nullptr) return false;
  if (exchange->view(tensor_.ptr(), &tensor) != 0) {  // for example a tensor without memory
    PyErr_Clear();
    return false;
  }
  if (tensor.device_type != dlpack::kCpu) return false;
  on_cpu_ = true;
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  dtype_ = dtype_of(tensor);
  dimensions_ = tensor.dimensions;
  std::copy_n(tensor.shape, std::min(dimensions_, kDimensions), shape_.begin());
  contiguous_ = is_contiguous(tensor);
  return true;
}

void Array::ask() {
  dtype_ = dtype_of(tensor_.attr("dtype"));
  const py::tuple shape = tensor_.attr("shape");
  dimensions_ = shape.size();
  for (size_t axis = 0; axis < std::min(dimensions_, kDimensions); ++axis)
    shape_[axis] = shape[axis].cast<int64_t>();
  on_cpu_ = tensor_.attr("is_cpu").cast<bool>();
  if (!on_cpu_) return;
  contiguous_ = tensor_.attr("is_contiguous")().cast<bool>();
  data_ = reinterpret_cast<void*>(tensor_.attr("data_ptr")().cast<uintptr_t>());
}

Dtype Array::dtype(const char* name) const {
  check_given(name);
  return dtype_;
}

void Array::refuse_dtype(const char* name, const char* expected) const {
  const std::string prefix = "torch.", dtype = shown(tensor_.attr("dtype"));
  throw py::type_error(std::string(name) + " must be " + expected + ", got " +
                       dtype.substr(dtype.rfind(prefix, 0) == 0 ? prefix.size() : 0));
}

void Array::check_given(const char* name) const {
  if (is_none()) throw py::type_error(std::string(name) + " must be a torch.Tensor, got None");
}

void Array::check_dimensions(const char* name, size_t dimensions) const {
  check_given(name);
  if (dimensions_ != dimensions)
    throw py::value_error(std::string(name) + " must have " + std::to_string(dimensions) +
                          " dimensions, got shape " + shape_of(tensor_));
}

void Array::check(const char* name, Dtype dtype, bool in_place, Sizes shape) const {
  check_given(name);
  const bool fits =
      dimensions_ == shape.size() && std::equal(shape.begin(), shape.end(), shape_.begin());
  if (on_cpu_ && dtype_ == dtype && fits && contiguous_) return;
  const std::string subject(name);
  if (!on_cpu_)
    throw py::value_error(subject + " must be on the CPU, got " + shown(tensor_.attr("device")));
  if (dtype_ != dtype) refuse_dtype(name, kDtypeNames[static_cast<size_t>(dtype)]);
  if (!fits)
    throw py::value_error(subject + " must have shape " + shown(shape) + ", got " +
                          shape_of(tensor_));
  throw py::value_error(subject +
                        (in_place ? " is updated in place and must be contiguous without overlap"
                                  : " must be contiguous") +
                        ", got shape " + shape_of(tensor_) + " with strides " +
                        shown(tensor_.attr("stride")()) + "; pass " + subject + ".contiguous()");
}

py::object Record::field(const char* name) const {
  // Creating a str of every name would take longer than reading the fields.
  static std::unordered_map<const char*, PyObject*> interned;
  PyObject*& key = interned[name];
  if (key == nullptr) key = PyUnicode_InternFromString(name);
  PyObject* const value = PyObject_GetAttr(record_.ptr(), key);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

Array Record::array(const char* name) const {
  const py::object value = field(name);
  const std::optional<Array> found = Array::of(value);
  if (!found)
    throw py::type_error(std::string(name) + " must be a torch.Tensor, got " +
                         Py_TYPE(value.ptr())->tp_name);
  return *found;
}

bool Record::has_all(const char* what, std::initializer_list<const char*> names) const {
  size_t given = 0;
  for (const char* const name : names) given += !field(name).is_none();
  if (given != 0 && given != names.size())
    throw py::value_error(std::string(what) + " must be given together or not at all");
  return given != 0;
}

}  // namespace saefast
