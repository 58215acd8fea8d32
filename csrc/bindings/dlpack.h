// The part of DLPack 1.3 (github.com/dmlc/dlpack) by which a tensor is read without a copy or a
// reference.
#pragma once
#include <cstdint>

namespace saefast::dlpack {

enum : int32_t { kCpu = 1 };
enum : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

// DLTensor.
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t dimensions;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t* shape;
  const int64_t* strides;  // in elements
  uint64_t byte_offset;
};

// DLPackExchangeAPI, to which an attribute of torch.Tensor points from torch 2.10 on.
inline constexpr char kAttribute[] = "__dlpack_c_exchange_api__";
inline constexpr char kCapsule[] = "dlpack_exchange_api";
inline constexpr uint32_t kMajor = 1;
struct Exchange {
  uint32_t major, minor;
  Exchange* older;
  void* allocate;
  void* from_python;
  void* to_python;
  // Fills `out`, which is valid as long as the tensor; returns nonzero if Python has raised an
  // error.
  int (*view)(void* object, Tensor* out);
};

}  // namespace saefast::dlpack
