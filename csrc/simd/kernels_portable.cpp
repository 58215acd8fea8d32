// The kernels in standard C++, for every processor; the reference for the other levels.
#define SAEFAST_LEVEL portable
#include "vector_portable.h"
// clang-format off: the vector type comes first
#include "row_kernels.h"
#include "pack_kernels.h"
#include "select_kernels.h"
// clang-format on

namespace saefast::portable {

namespace {

constexpr int kRows = 4, kColumns = 16;

template <bool kAbsolute>
uint32_t tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
              const float* thresholds, float* scores) {
  const float* left = reinterpret_cast<const float*>(a);
  const float* right = reinterpret_cast<const float*>(b);
  float sum[kRows][kColumns] = {};
  for (int64_t u = 0; u < units; ++u)
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c) sum[r][c] += left[u * kRows + r] * right[u * kColumns + c];
  uint32_t hits = 0;
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) {
      scores[r * kColumns + c] = sum[r][c];
      if (rank_of<kAbsolute>(sum[r][c] + bias[c]) > thresholds[r]) hits |= 1u << r;
    }
  return hits;
}

template <bool kAbsolute>
uint32_t int16_tile(const uint32_t* a, const uint32_t* b, int64_t units, int64_t, const float* bias,
                    const float* thresholds, float* scores) {
  const int16_t* left = reinterpret_cast<const int16_t*>(a);
  const int16_t* right = reinterpret_cast<const int16_t*>(b);
  int32_t sum[kRows][kColumns] = {};
  for (int64_t u = 0; u + 1 < units; ++u)
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c)
        for (int half = 0; half < 2; ++half)
          sum[r][c] += static_cast<int32_t>(left[2 * (u * kRows + r) + half]) *
                       right[2 * (u * kColumns + c) + half];
  const float* row_worth = reinterpret_cast<const float*>(a) + (units - 1) * kRows;
  const float* column_worth = reinterpret_cast<const float*>(b) + (units - 1) * kColumns;
  uint32_t hits = 0;
  for (int r = 0; r < kRows; ++r) {
    const float factor = row_worth[r] * 0x1p-30f;
    for (int c = 0; c < kColumns; ++c) {
      const float score = static_cast<float>(sum[r][c]) * factor * column_worth[c];
      scores[r * kColumns + c] = score;
      if (rank_of<kAbsolute>(score + bias[c]) > thresholds[r]) hits |= 1u << r;
    }
  }
  return hits;
}

template <bool kAbsolute>
int64_t filter(const float* scores, const float* bias, int64_t columns, float threshold,
               int32_t first, float* out_scores, int32_t* out_ids) {
  int64_t found = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const float score = scores[c] + bias[c];
    out_scores[found] = score;
    out_ids[found] = first + static_cast<int32_t>(c);
    found += rank_of<kAbsolute>(score) > threshold ? 1 : 0;
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

}  // namespace saefast::portable
