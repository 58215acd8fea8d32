// Shortening a row's list of candidates: raise its floor, drop what lies below.
#pragma once
#include <cmath>
#include <cstdint>

#include "keys.h"
#include "row_team.h"

namespace saefast {

// Memory that no kernel writes while this one runs.
SAEFAST_DEVICE inline float read(const float* at) {
#if defined(__CUDA_ARCH__)
  return __ldg(at);
#else
  return *at;
#endif
}

// How far the scores of one row can be from its screening product, see kernels/keep_best.py.
template <bool Bounded>
struct RowBounds {
  const float* shift;
  const float* norm;
  const float* lost;
  float reach;
  float spread;

  SAEFAST_DEVICE float doubt(float norm_here, float lost_here) const {
    return fmaf(spread, lost_here, reach * norm_here);
  }

  // The key of what a score is at least; `key` says what it is at most.
  SAEFAST_DEVICE int64_t least(int64_t key) const {
    if constexpr (Bounded) {
      const int32_t index = index_of(key);
      const float twice = 2.0f * doubt(read(norm + index), read(lost + index));
      // Twice the 2^-20 by which `shift` was raised for the roundings of the bias, and some.
      const float doubts = fmaf(0x1p-18f, fabsf(read(shift + index)), twice);
      return key_of(score_of(key) - doubts, index);
    } else {
      return key;
    }
  }
};

struct Cut {
  int32_t count;
  int64_t floor_key;  // k entries of the list are certainly at least that
};

// How many of a list's entries reach `floor_key`. Each lane looks at those it has written itself.
template <class Team>
SAEFAST_DEVICE int32_t reached_by(Team& team, const int64_t* certain, int32_t count,
                                  int64_t floor_key) {
  int32_t mine = 0;
  for (int32_t i = team.lane(); i < count; i += Team::SIZE) mine += certain[i] >= floor_key ? 1 : 0;
  return team.sum(mine);
}

// Raises the floor until at most k + spare entries certainly reach it; count must be >= k.
// `certain` has room for the list; it may be the list itself where bounds doubt nothing.
template <class Team, class Bounds>
SAEFAST_DEVICE Cut cut_list(Team& team, int64_t* list, int64_t* certain, Cut old,
                            const Bounds& bounds, int32_t k, int32_t spare) {
  team.sync();
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int32_t i = team.lane(); i < old.count; i += Team::SIZE) {
    const int64_t key = bounds.least(list[i]);
    certain[i] = key;
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  low = team.smallest(low);
  low = low > old.floor_key ? low : old.floor_key;
  high = team.largest(high) + 1;
  int32_t above = reached_by(team, certain, old.count, low);
  while (above > k + spare && low + 1 < high) {
    const int64_t middle = (low & high) + ((low ^ high) >> 1);
    const int32_t reached = reached_by(team, certain, old.count, middle);
    if (reached >= k) {
      low = middle;
      above = reached;
    } else {
      high = middle;
    }
  }
  // What reaches the floor reaches the least of what does.
  int64_t least = INT64_MAX;
  for (int32_t i = team.lane(); i < old.count; i += Team::SIZE) {
    if (certain[i] >= low && certain[i] < least) least = certain[i];
  }
  low = team.smallest(least);
  // In place: what a round writes lies no further than what all lanes have read when they meet.
  int32_t kept = 0;
  for (int32_t start = 0; start < old.count; start += Team::SIZE) {
    const int32_t i = start + team.lane();
    const int64_t key = i < old.count ? list[i] : EMPTY_KEY;
    const bool keep = i < old.count && key >= low;
    const Rank rank = team.rank(keep);
    if (keep) list[kept + rank.before] = key;
    kept += rank.all;
  }
  return {kept, low};
}

}  // namespace saefast
