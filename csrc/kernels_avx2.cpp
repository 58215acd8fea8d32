// The inner loops for AVX2 and FMA.
#define SAEFAST_LEVEL avx2
#include "vector_avx2.h"
// clang-format off: the vector type comes first
#include "row_kernels.h"
#include "pack_kernels.h"
#include "select_kernels.h"
// clang-format on

namespace saefast::avx2 {

namespace {

constexpr int kRows = 6, kColumns = 16;

// Twelve accumulators, two columns vectors and one broadcast: 15 of the 16 registers.
uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, const float* bias,
              const float* thresholds, float* scores) {
  const float* left = reinterpret_cast<const float*>(a);
  const float* right = reinterpret_cast<const float*>(b);
  __m256 sum[kRows][2];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  for (int64_t u = 0; u < units; ++u) {
    const __m256 low = _mm256_loadu_ps(right + u * kColumns);
    const __m256 high = _mm256_loadu_ps(right + u * kColumns + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_broadcast_ss(left + u * kRows + r);
      sum[r][0] = _mm256_fmadd_ps(x, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, high, sum[r][1]);
    }
  }
  const __m256 bias_low = _mm256_loadu_ps(bias), bias_high = _mm256_loadu_ps(bias + 8);
  uint32_t hits = 0;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const __m256 threshold = _mm256_broadcast_ss(thresholds + r);
    const __m256 above =
        _mm256_or_ps(_mm256_cmp_ps(_mm256_add_ps(sum[r][0], bias_low), threshold, _CMP_GT_OQ),
                     _mm256_cmp_ps(_mm256_add_ps(sum[r][1], bias_high), threshold, _CMP_GT_OQ));
    if (_mm256_movemask_ps(above) != 0) hits |= 1u << r;
  }
  if (hits != 0) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(scores + r * kColumns, sum[r][0]);
      _mm256_storeu_ps(scores + r * kColumns + 8, sum[r][1]);
    }
  }
  return hits;
}

int64_t filter(const float* scores, const float* bias, int64_t columns, float threshold,
               int32_t first, float* out_scores, int32_t* out_ids) {
  const __m256 limit = _mm256_set1_ps(threshold);
  int64_t found = 0, c = 0;
  for (; c + 8 <= columns; c += 8) {
    const __m256 sum = _mm256_add_ps(_mm256_loadu_ps(scores + c), _mm256_loadu_ps(bias + c));
    uint32_t hits =
        static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(sum, limit, _CMP_GT_OQ)));
    for (; hits != 0; hits &= hits - 1) {
      const int lane = __builtin_ctz(hits);
      out_scores[found] = scores[c + lane] + bias[c + lane];
      out_ids[found++] = first + static_cast<int32_t>(c) + lane;
    }
  }
  for (; c < columns; ++c) {
    const float sum = scores[c] + bias[c];
    out_scores[found] = sum;
    out_ids[found] = first + static_cast<int32_t>(c);
    found += sum > threshold ? 1 : 0;
  }
  return found;
}

}  // namespace

Kernels kernels() {
  return {row_kernels<float>(),    row_kernels<double>(),    row_kernels<bf16>(),
          update_kernels<float>(), update_kernels<double>(), {filter, reached_by, keep_from},
          pack_kernels(),          {kRows, kColumns, tile},  {0, 0, nullptr}};
}

}  // namespace saefast::avx2
