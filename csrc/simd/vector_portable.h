// Vectors of sixteen floats or eight doubles as plain arrays, with the interface of
// vector_avx512.h: the reference for all instruction sets.
#include <cmath>

#include "../storage.h"

namespace saefast::portable {

template <class T>
struct Lanes {
  static constexpr int kLanes = 64 / sizeof(T);
  T lane[kLanes];

  static Lanes zero() { return fill(T(0)); }
  static Lanes fill(T value) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = value;
    return out;
  }
  template <class Storage>
  static Lanes load(const Storage* from) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = widen(from[i]);
    return out;
  }
  template <class Storage>
  static Lanes load_first(const Storage* from, int64_t count) {
    Lanes out = zero();
    for (int64_t i = 0; i < count; ++i) out.lane[i] = widen(from[i]);
    return out;
  }
  void store(T* to) const {
    for (int i = 0; i < kLanes; ++i) to[i] = lane[i];
  }
  void store_first(T* to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) to[i] = lane[i];
  }
  T sum() const {
    T part[kLanes];
    for (int i = 0; i < kLanes; ++i) part[i] = lane[i];
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    return part[0];
  }
  friend Lanes operator+(Lanes a, Lanes b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  friend Lanes operator-(Lanes a, Lanes b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  friend Lanes operator*(Lanes a, Lanes b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  friend Lanes operator/(Lanes a, Lanes b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] /= b.lane[i];
    return a;
  }
  static Lanes fma(Lanes a, Lanes b, Lanes c) {
    for (int i = 0; i < kLanes; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }
  static Lanes sqrt(Lanes a) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = std::sqrt(a.lane[i]);
    return a;
  }
};

template <class T>
using Vector = Lanes<T>;

}  // namespace saefast::portable
