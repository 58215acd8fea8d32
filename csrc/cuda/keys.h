// A score and its index as one integer, with the same bits as in kernels/keys.py.
#pragma once
#include <cstdint>
#include <cstring>

#include "row_team.h"

namespace saefast {

// Key of an unused place; lower than every other key.
constexpr int64_t EMPTY_KEY = INT64_MIN;

// Maps a float32 score to an int32 of the same order: NaN comes after infinity, as in torch's
// sorts; both zeros are equal.
SAEFAST_DEVICE inline int32_t ordered(float score) {
  if (score != score) return INT32_MAX;
  if (score == 0.0f) return 0;
  int32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits ^ ((bits >> 31) & INT32_MAX);
}

// Returns the key of a score. Descending keys are descending scores, with equal scores by ascending
// index.
SAEFAST_DEVICE inline int64_t key_of(float score, int32_t index) {
  return static_cast<int64_t>(ordered(score)) * (int64_t{1} << 32) + (INT32_MAX - index);
}

// Returns the index that a key contains.
SAEFAST_DEVICE inline int32_t index_of(int64_t key) {
  return INT32_MAX - static_cast<int32_t>(key & INT32_MAX);
}

// Returns the score that a key contains.
SAEFAST_DEVICE inline float score_of(int64_t key) {
  int32_t bits = static_cast<int32_t>(key >> 32);
  bits ^= (bits >> 31) & INT32_MAX;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace saefast
