// Vectors of sixteen floats (F) or eight doubles (D) in two AVX2 registers, with the interface of
// vector_avx512.h.
#include <immintrin.h>

#include "../storage.h"

namespace saefast::avx2 {

struct F {
  static constexpr int kLanes = 16;
  __m256 low, high;

  static F zero() { return fill(0.0f); }
  static F fill(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static __m256 widen8(const bf16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static F load(const bf16* from) { return {widen8(from), widen8(from + 8)}; }
  template <class Storage>
  static F load_first(const Storage* from, int64_t count) {
    alignas(32) float padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = widen(from[i]);
    return load(padded);
  }
  void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  void store_first(float* to, int64_t count) const {
    alignas(32) float padded[kLanes];
    store(padded);
    for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
  }
  float sum() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  friend F operator+(F a, F b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  friend F operator-(F a, F b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  friend F operator*(F a, F b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  friend F operator/(F a, F b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F sqrt(F a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
};

struct D {
  static constexpr int kLanes = 8;
  __m256d low, high;

  static D zero() { return fill(0.0); }
  static D fill(double value) { return {_mm256_set1_pd(value), _mm256_set1_pd(value)}; }
  static D load(const double* from) { return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)}; }
  static D load_first(const double* from, int64_t count) {
    alignas(32) double padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
  }
  void store(double* to) const {
    _mm256_storeu_pd(to, low);
    _mm256_storeu_pd(to + 4, high);
  }
  void store_first(double* to, int64_t count) const {
    alignas(32) double padded[kLanes];
    store(padded);
    for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
  }
  double sum() const {
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  friend D operator+(D a, D b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  friend D operator-(D a, D b) {
    return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)};
  }
  friend D operator*(D a, D b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  friend D operator/(D a, D b) {
    return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)};
  }
  static D fma(D a, D b, D c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static D sqrt(D a) { return {_mm256_sqrt_pd(a.low), _mm256_sqrt_pd(a.high)}; }
};

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = F;
};
template <>
struct VectorOf<double> {
  using type = D;
};
template <class T>
using Vector = typename VectorOf<T>::type;

}  // namespace saefast::avx2
