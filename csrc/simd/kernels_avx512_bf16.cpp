// The kernels for AVX-512 with bfloat16 products: those of AVX-512, and a screening tile at twice
// the speed.
#define SAEFAST_LEVEL avx512_bf16
#include "kernels.h"
#include "screen_avx512.h"

namespace saefast::avx512_bf16 {

namespace {

template <bool kAbsolute>
uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
              const float* thresholds, float* scores) {
  const auto multiply_add = [](__m512 sum, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  };
  return screen_tile<kAbsolute>(a, b, units, bias, thresholds, scores, multiply_add);
}

}  // namespace

Kernels kernels() {
  Kernels all = avx512::kernels();
  all.screen_bf16 = {kTileRows, kTileColumns, tile<false>, tile<true>};
  return all;
}

}  // namespace saefast::avx512_bf16
