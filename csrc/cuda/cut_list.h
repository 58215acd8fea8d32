// Cutting a row's list of candidates: its floor is raised, and keys below it are dropped.
#pragma once
#include <cmath>
#include <cstdint>

#include "keys.h"
#include "row_team.h"

namespace saefast {

// Reads memory that no kernel writes while this one runs.
SAEFAST_DEVICE inline float read(const float* at) {
#if defined(__CUDA_ARCH__)
  return __ldg(at);
#else
  return *at;
#endif
}

// Error bounds of the scores of one row, see kernels/encode/keep_best.py.
template <bool Bounded>
struct RowBounds {
  const float* shift;
  const float* norm;
  const float* lost;
  float reach;
  float spread;

  // Returns the error bound of a column with these norms.
  SAEFAST_DEVICE float doubt(float norm_here, float lost_here) const {
    return fmaf(spread, lost_here, reach * norm_here);
  }

  // Turns the key of an upper bound of a score into the key of a lower bound.
  SAEFAST_DEVICE int64_t least(int64_t key) const {
    if constexpr (Bounded) {
      const int32_t index = index_of(key);
      const float twice = 2.0f * doubt(read(norm + index), read(lost + index));
      // More than twice the 2^-20 by which `shift` was raised for the rounding errors of the bias.
      const float doubts = fmaf(0x1p-18f, fabsf(read(shift + index)), twice);
      return key_of(score_of(key) - doubts, index);
    } else {
      return key;
    }
  }
};

// The length of a list and its floor.
struct Cut {
  int32_t count;
  int64_t floor_key;  // key that at least k entries certainly reach
};

// Returns how many of a list's entries reach `floor_key`. Each lane reads the entries it has
// written.
template <class Team>
SAEFAST_DEVICE int32_t reached_by(Team& team, const int64_t* certain, int32_t count,
                                  int64_t floor_key) {
  int32_t mine = 0;
  for (int32_t i = team.lane(); i < count; i += Team::SIZE) mine += certain[i] >= floor_key ? 1 : 0;
  return team.sum(mine);
}

// Raises the floor until at most k + spare entries certainly reach it, and drops the keys below it;
// old.count must be at least k. `certain` is scratch as long as the list; it may be the list itself
// if the bounds are exact. All lanes return the same result.
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
  // Raise the floor to the lowest of the lower bounds that reach it: the same entries reach it.
  int64_t least = INT64_MAX;
  for (int32_t i = team.lane(); i < old.count; i += Team::SIZE) {
    if (certain[i] >= low && certain[i] < least) least = certain[i];
  }
  low = team.smallest(least);
  // In place: a round writes no further than what all lanes have read at its barrier.
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
