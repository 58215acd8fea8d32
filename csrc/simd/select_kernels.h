// Operations on the candidate list of a row; each instruction set includes this file.
#include "kernels.h"

namespace saefast::SAEFAST_LEVEL {

// Returns the key by which a score is ranked.
template <bool kAbsolute>
static inline float rank_of(float score) {
  return kAbsolute ? __builtin_fabsf(score) : score;
}

// Returns how many scores are at least `floor`.
template <bool kAbsolute>
static int64_t count_from(const float* scores, int64_t count, float floor) {
  int32_t reached = 0;
  for (int64_t i = 0; i < count; ++i) reached += rank_of<kAbsolute>(scores[i]) >= floor ? 1 : 0;
  return reached;
}

// Bisects the value: twelve counting passes over a list in the L1 cache take less time than one
// partial sort, and any floor that k entries reach is valid.
template <bool kAbsolute>
static float reached_by(const float* scores, int64_t count, int64_t k) {
  float low = rank_of<kAbsolute>(scores[0]), high = low;
  for (int64_t i = 1; i < count; ++i) {
    const float rank = rank_of<kAbsolute>(scores[i]);
    low = rank < low ? rank : low;
    high = rank > high ? rank : high;
  }
  for (int pass = 0; pass < 12 && low < high; ++pass) {
    const float middle = low + 0.5f * (high - low);
    if (middle <= low) break;
    if (count_from<kAbsolute>(scores, count, middle) >= k) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

#if !defined(SAEFAST_OWN_LIST_LOOPS)
// See `Places`. Sixteen scores at a time are compared with every score, without branches: for a few
// hundred scores this takes a fraction of the time of a sort.
static void places(const float* scores, int64_t count, int32_t* out) {
  constexpr int64_t kLanes = 16;
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t used = count - first < kLanes ? count - first : kLanes;
    float mine[kLanes] = {};
    for (int64_t lane = 0; lane < used; ++lane) mine[lane] = scores[first + lane];
    int32_t before[kLanes] = {};
    for (int64_t c = 0; c < first; ++c)
      for (int64_t lane = 0; lane < kLanes; ++lane) before[lane] += scores[c] >= mine[lane] ? 1 : 0;
    for (int64_t c = 0; c < used; ++c)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        before[lane] += (mine[c] > mine[lane]) | ((mine[c] == mine[lane]) & (c < lane)) ? 1 : 0;
    for (int64_t c = first + used; c < count; ++c)
      for (int64_t lane = 0; lane < kLanes; ++lane) before[lane] += scores[c] > mine[lane] ? 1 : 0;
    for (int64_t lane = 0; lane < used; ++lane) out[first + lane] = before[lane];
  }
}

template <bool kAbsolute>
static int64_t keep_from(float* scores, int32_t* ids, int64_t count, float floor) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float score = scores[i];
    const int32_t id = ids[i];
    scores[kept] = score;
    ids[kept] = id;
    kept += rank_of<kAbsolute>(score) >= floor ? 1 : 0;
  }
  return kept;
}
#endif

}  // namespace saefast::SAEFAST_LEVEL
