// The kernels for AVX-512 with bfloat16 products: those of AVX-512, and a screening tile at twice
// the speed.
#define SAEFAST_LEVEL avx512_bf16
#include "kernels.h"
#include "screen_avx512.h"

namespace saefast::avx512_bf16 {

namespace {

uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
              const float* thresholds, float* scores) {
  return screen_tile(a, b, units, bias, thresholds, scores, [](__m512 sum, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  });
}

}  // namespace

Kernels kernels() {
  Kernels all = avx512::kernels();
  all.screen_bf16 = {kTileRows, kTileColumns, tile};
  return all;
}

}  // namespace saefast::avx512_bf16
