// Element types of tensors, and the type in which computations with each are done.
//
// The functions here are `static`: this header is compiled once per instruction set, and a shared
// weak symbol could be the AVX-512 copy on a machine without AVX-512.
#pragma once
#include <cstdint>
#include <cstring>

namespace saefast {

// A bfloat16 in memory: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

// Converts an element to its compute type; exact.
static inline float widen(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }

// Rounds to the nearest bfloat16, ties to even, as torch does. NaN stays NaN.
static inline bf16 narrow_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// The type in which elements of type Storage are computed: float for bfloat16, else their own.
template <class Storage>
struct ComputeType {
  using type = Storage;
};
template <>
struct ComputeType<bf16> {
  using type = float;
};
template <class Storage>
using compute_t = typename ComputeType<Storage>::type;

// Stores a computed value in an element, rounded if the element is a bfloat16.
static inline void assign(float& to, float value) { to = value; }
static inline void assign(double& to, double value) { to = value; }
static inline void assign(bf16& to, float value) { to = narrow_to_bf16(value); }

}  // namespace saefast
