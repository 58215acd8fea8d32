// The kernels for AVX2 and FMA.
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

// Returns the keys by which scores are ranked.
template <bool kAbsolute>
inline __m256 ranks_of(__m256 scores) {
  return kAbsolute ? _mm256_andnot_ps(_mm256_set1_ps(-0.0f), scores) : scores;
}

// Compares the first `kUsed` rows of a tile with their thresholds, and stores their scores if there
// is a hit; see ScreenKernels::tile.
template <bool kAbsolute, int kUsed>
inline __attribute__((always_inline)) uint32_t compare(const __m256 (&score)[kUsed][2],
                                                       const float* bias, const float* thresholds,
                                                       float* scores) {
  const __m256 bias_low = _mm256_loadu_ps(bias), bias_high = _mm256_loadu_ps(bias + 8);
  uint32_t hits = 0;
#pragma GCC unroll 6
  for (int r = 0; r < kUsed; ++r) {
    const __m256 threshold = _mm256_broadcast_ss(thresholds + r);
    const __m256 low = ranks_of<kAbsolute>(_mm256_add_ps(score[r][0], bias_low));
    const __m256 high = ranks_of<kAbsolute>(_mm256_add_ps(score[r][1], bias_high));
    const __m256 above = _mm256_or_ps(_mm256_cmp_ps(low, threshold, _CMP_GT_OQ),
                                      _mm256_cmp_ps(high, threshold, _CMP_GT_OQ));
    if (_mm256_movemask_ps(above) != 0) hits |= 1u << r;
  }
  if (hits != 0) {
#pragma GCC unroll 6
    for (int r = 0; r < kUsed; ++r) {
      _mm256_storeu_ps(scores + r * kColumns, score[r][0]);
      _mm256_storeu_ps(scores + r * kColumns + 8, score[r][1]);
    }
  }
  return hits;
}

// Twelve accumulators, two vectors of columns and one broadcast: 15 of the 16 registers.
template <bool kAbsolute>
uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
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
  return compare<kAbsolute, kRows>(sum, bias, thresholds, scores);
}

// Multiplies the first `kUsed` rows of a tile of 16-bit integers. An instruction multiplies them
// and adds neighbouring products in 32 bits: twice as many products as an instruction for floats
// has, and without rounding, since the sums fit; see pack_int16.h.
template <bool kAbsolute, int kUsed>
uint32_t int16_rows(const uint32_t* a, const uint32_t* b, int64_t units, const float* bias,
                    const float* thresholds, float* scores) {
  __m256i sum[kUsed][2];
#pragma GCC unroll 6
  for (int r = 0; r < kUsed; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  const int64_t last = units - 1;  // holds the floats that the integers are worth
  for (int64_t u = 0; u < last; ++u) {
    const __m256i* w = reinterpret_cast<const __m256i*>(b + u * kColumns);
    const __m256i low = _mm256_loadu_si256(w), high = _mm256_loadu_si256(w + 1);
#pragma GCC unroll 6
    for (int r = 0; r < kUsed; ++r) {
      const __m256i x = _mm256_set1_epi32(static_cast<int>(a[u * kRows + r]));
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(x, low));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(x, high));
      // An empty statement that keeps the rows in order: GCC would start all of them, and spill
      // registers.
      __asm__("" : "+x"(sum[r][0]), "+x"(sum[r][1]));
    }
  }
  const float* row_worth = reinterpret_cast<const float*>(a + last * kRows);
  const float* column_worth = reinterpret_cast<const float*>(b + last * kColumns);
  const __m256 worth_low = _mm256_loadu_ps(column_worth);
  const __m256 worth_high = _mm256_loadu_ps(column_worth + 8);
  __m256 score[kUsed][2];
#pragma GCC unroll 6
  for (int r = 0; r < kUsed; ++r) {
    const __m256 factor = _mm256_set1_ps(row_worth[r] * 0x1p-30f);
    score[r][0] = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][0]), factor), worth_low);
    score[r][1] = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][1]), factor), worth_high);
  }
  return compare<kAbsolute, kUsed>(score, bias, thresholds, scores);
}

template <bool kAbsolute>
uint32_t int16_tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t used,
                    const float* bias, const float* thresholds, float* scores) {
  if (used == 1) return int16_rows<kAbsolute, 1>(a, b, units, bias, thresholds, scores);
  if (used == 2) return int16_rows<kAbsolute, 2>(a, b, units, bias, thresholds, scores);
  if (used <= 4) return int16_rows<kAbsolute, 4>(a, b, units, bias, thresholds, scores);
  return int16_rows<kAbsolute, kRows>(a, b, units, bias, thresholds, scores);
}

template <bool kAbsolute>
int64_t filter(const float* scores, const float* bias, int64_t columns, float threshold,
               int32_t first, float* out_scores, int32_t* out_ids) {
  const __m256 limit = _mm256_set1_ps(threshold);
  int64_t found = 0, c = 0;
  for (; c + 8 <= columns; c += 8) {
    const __m256 sum = _mm256_add_ps(_mm256_loadu_ps(scores + c), _mm256_loadu_ps(bias + c));
    const __m256 above = _mm256_cmp_ps(ranks_of<kAbsolute>(sum), limit, _CMP_GT_OQ);
    uint32_t hits = static_cast<uint32_t>(_mm256_movemask_ps(above));
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
    found += rank_of<kAbsolute>(sum) > threshold ? 1 : 0;
  }
  return found;
}

}  // namespace

Kernels kernels() {
  return {row_kernels<float>(),
          row_kernels<double>(),
          row_kernels<bf16>(),
          update_kernels<float>(),
          update_kernels<double>(),
          {filter<false>, reached_by<false>, keep_from<false>},
          {filter<true>, reached_by<true>, keep_from<true>},
          places,
          pack_kernels(),
          {kRows, kColumns, tile<false>, tile<true>},
          {},
          {kRows, kColumns, int16_tile<false>, int16_tile<true>}};
}

}  // namespace saefast::avx2
