// Vectors of sixteen floats (F) or eight doubles (D) in one AVX-512 register. The including file
// defines SAEFAST_LEVEL.
//
// Operations that end in `first` access `count` elements only, fewer than kLanes; others are zero.
#include <immintrin.h>

#include "../storage.h"

namespace saefast::SAEFAST_LEVEL {

struct F {
  static constexpr int kLanes = 16;
  __m512 r;

  static F zero() { return {_mm512_setzero_ps()}; }
  static F fill(float value) { return {_mm512_set1_ps(value)}; }
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static F load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static F load_first(const float* from, int64_t count) {
    return {_mm512_maskz_loadu_ps(first(count), from)};
  }
  static F widen16(__m256i halves) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  static F load(const bf16* from) {
    return widen16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static F load_first(const bf16* from, int64_t count) {
    return widen16(_mm256_maskz_loadu_epi16(first(count), from));
  }
  void store(float* to) const { _mm512_storeu_ps(to, r); }
  void store_first(float* to, int64_t count) const { _mm512_mask_storeu_ps(to, first(count), r); }
  float sum() const {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(r),
                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(r), 1)));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  friend F operator+(F a, F b) { return {_mm512_add_ps(a.r, b.r)}; }
  friend F operator-(F a, F b) { return {_mm512_sub_ps(a.r, b.r)}; }
  friend F operator*(F a, F b) { return {_mm512_mul_ps(a.r, b.r)}; }
  friend F operator/(F a, F b) { return {_mm512_div_ps(a.r, b.r)}; }
  static F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
  static F sqrt(F a) { return {_mm512_sqrt_ps(a.r)}; }
};

struct D {
  static constexpr int kLanes = 8;
  __m512d r;

  static D zero() { return {_mm512_setzero_pd()}; }
  static D fill(double value) { return {_mm512_set1_pd(value)}; }
  static __mmask8 first(int64_t count) { return static_cast<__mmask8>((1u << count) - 1); }
  static D load(const double* from) { return {_mm512_loadu_pd(from)}; }
  static D load_first(const double* from, int64_t count) {
    return {_mm512_maskz_loadu_pd(first(count), from)};
  }
  void store(double* to) const { _mm512_storeu_pd(to, r); }
  void store_first(double* to, int64_t count) const { _mm512_mask_storeu_pd(to, first(count), r); }
  double sum() const {
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(r), _mm512_extractf64x4_pd(r, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  friend D operator+(D a, D b) { return {_mm512_add_pd(a.r, b.r)}; }
  friend D operator-(D a, D b) { return {_mm512_sub_pd(a.r, b.r)}; }
  friend D operator*(D a, D b) { return {_mm512_mul_pd(a.r, b.r)}; }
  friend D operator/(D a, D b) { return {_mm512_div_pd(a.r, b.r)}; }
  static D fma(D a, D b, D c) { return {_mm512_fmadd_pd(a.r, b.r, c.r)}; }
  static D sqrt(D a) { return {_mm512_sqrt_pd(a.r)}; }
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

}  // namespace saefast::SAEFAST_LEVEL
