// The kernels for AVX-512 (F, BW, DQ, VL).
#define SAEFAST_LEVEL avx512
#define SAEFAST_OWN_LIST_LOOPS
#include "vector_avx512.h"
// clang-format off: the vector type comes first
#include "row_kernels.h"
#include "pack_kernels.h"
#include "screen_avx512.h"
#include "select_kernels.h"
// clang-format on

namespace saefast::avx512 {

namespace {

template <bool kAbsolute>
uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
              const float* thresholds, float* scores) {
  const auto multiply_add = [](__m512 sum, __m512i x, __m512i w) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
  };
  return screen_tile<kAbsolute>(a, b, units, bias, thresholds, scores, multiply_add);
}

// Compresses in a register and stores the whole register: compressing stores are microcoded on Zen
// 4.
template <bool kAbsolute>
int64_t filter(const float* scores, const float* bias, int64_t columns, float threshold,
               int32_t first, float* out_scores, int32_t* out_ids) {
  const __m512 limit = _mm512_set1_ps(threshold);
  __m512i ids =
      _mm512_add_epi32(_mm512_set1_epi32(first),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  int64_t found = 0;
  for (int64_t c = 0; c < columns; c += 16, ids = _mm512_add_epi32(ids, _mm512_set1_epi32(16))) {
    const __mmask16 valid =
        static_cast<__mmask16>(columns - c >= 16 ? 0xffff : (1u << (columns - c)) - 1);
    const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(valid, scores + c),
                                     _mm512_maskz_loadu_ps(valid, bias + c));
    const __mmask16 hits =
        _mm512_mask_cmp_ps_mask(valid, ranks_of<kAbsolute>(sum), limit, _CMP_GT_OQ);
    if (hits == 0) continue;
    _mm512_storeu_ps(out_scores + found, _mm512_maskz_compress_ps(hits, sum));
    _mm512_storeu_si512(out_ids + found, _mm512_maskz_compress_epi32(hits, ids));
    found += __builtin_popcount(hits);
  }
  return found;
}

template <bool kAbsolute>
int64_t keep_from(float* scores, int32_t* ids, int64_t count, float floor) {
  const __m512 limit = _mm512_set1_ps(floor);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 valid =
        static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1u << (count - i)) - 1);
    const __m512 score = _mm512_maskz_loadu_ps(valid, scores + i);
    const __m512i id = _mm512_maskz_loadu_epi32(valid, ids + i);
    const __mmask16 keep =
        _mm512_mask_cmp_ps_mask(valid, ranks_of<kAbsolute>(score), limit, _CMP_GE_OQ);
    _mm512_storeu_ps(scores + kept, _mm512_maskz_compress_ps(keep, score));
    _mm512_storeu_si512(ids + kept, _mm512_maskz_compress_epi32(keep, id));
    kept += __builtin_popcount(keep);
  }
  return kept;
}

// See `Places`. The generic loop compiles to several times as many instructions.
void places(const float* scores, int64_t count, int32_t* out) {
  const __m512i one = _mm512_set1_epi32(1);
  for (int64_t first = 0; first < count; first += 16) {
    const int64_t end = first + 16 < count ? first + 16 : count;
    const __mmask16 valid = static_cast<__mmask16>((1u << (end - first)) - 1);
    const __m512 mine = _mm512_maskz_loadu_ps(valid, scores + first);
    __m512i before = _mm512_setzero_si512();
    const auto add = [&](__mmask16 comes) {
      before = _mm512_mask_add_epi32(before, comes, before, one);
    };
    int64_t c = 0;
    for (; c < first; ++c) add(_mm512_cmp_ps_mask(_mm512_set1_ps(scores[c]), mine, _CMP_GE_OQ));
    for (; c < end; ++c) {
      const __m512 score = _mm512_set1_ps(scores[c]);
      const auto later = static_cast<__mmask16>(0xffffu << (c - first + 1));
      add(_mm512_cmp_ps_mask(score, mine, _CMP_GT_OQ) |
          _mm512_mask_cmp_ps_mask(later, score, mine, _CMP_EQ_OQ));
    }
    for (; c < count; ++c) add(_mm512_cmp_ps_mask(_mm512_set1_ps(scores[c]), mine, _CMP_GT_OQ));
    _mm512_mask_storeu_epi32(out + first, valid, before);
  }
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
          {kTileRows, kTileColumns, tile<false>, tile<true>},
          {},
          {}};
}

}  // namespace saefast::avx512
