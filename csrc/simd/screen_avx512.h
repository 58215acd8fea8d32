// The loop of both AVX-512 screening tiles: six rows by sixty-four columns of accumulators.
#include <immintrin.h>

#include <cstdint>

namespace saefast::SAEFAST_LEVEL {

constexpr int kTileRows = 6, kTileVectors = 4, kTileColumns = 16 * kTileVectors;

// Returns the keys by which scores are ranked.
template <bool kAbsolute>
static inline __m512 ranks_of(__m512 scores) {
  return kAbsolute ? _mm512_abs_ps(scores) : scores;
}

// Multiplies one tile, see ScreenKernels::tile; multiply_add(sum, x, w) adds the products of one
// unit. 24 accumulators, four vectors of columns and one broadcast: 29 of the 32 registers.
template <bool kAbsolute, class MultiplyAdd>
static inline __attribute__((always_inline)) uint32_t
screen_tile(const uint32_t* a, const uint32_t* b, int64_t units, const float* bias,
            const float* thresholds, float* scores, MultiplyAdd multiply_add) {
  __m512 sum[kTileRows][kTileVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u) {
    __m512i w[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) w[v] = _mm512_loadu_si512(b + u * kTileColumns + v * 16);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(a[u * kTileRows + r]));
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] = multiply_add(sum[r][v], x, w[v]);
    }
  }
  uint32_t hits = 0;
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    const __m512 threshold = _mm512_set1_ps(thresholds[r]);
    uint32_t above = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v)
      above |= _mm512_cmp_ps_mask(
          ranks_of<kAbsolute>(_mm512_add_ps(sum[r][v], _mm512_loadu_ps(bias + v * 16))), threshold,
          _CMP_GT_OQ);
    hits |= (above != 0 ? 1u : 0u) << r;
  }
  if (hits != 0) {
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v)
        _mm512_storeu_ps(scores + r * kTileColumns + v * 16, sum[r][v]);
  }
  return hits;
}

}  // namespace saefast::SAEFAST_LEVEL
