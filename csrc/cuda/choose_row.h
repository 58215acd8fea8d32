// One row of `choose`: the k best entries of its list, in order.
#pragma once
#include <cstdint>

#include "cut_list.h"
#include "keys.h"
#include "row_team.h"

namespace saefast {

// Returns the smallest power of two that is at least `at_least`.
SAEFAST_DEVICE inline int32_t power_of_two(int32_t at_least) {
  int32_t power = 1;
  while (power < at_least) power *= 2;
  return power;
}

// Sorts keys [size] in descending order by a bitonic network; `size` is a power of two.
template <class Team>
SAEFAST_DEVICE void sort_keys(Team& team, int64_t* keys, int32_t size) {
  for (int32_t run = 2; run <= size; run *= 2) {
    for (int32_t stride = run / 2; stride > 0; stride /= 2) {
      team.sync();
      for (int32_t pair = team.lane(); pair < size / 2; pair += Team::SIZE) {
        const int32_t at = 2 * pair - (pair & (stride - 1));
        const int64_t left = keys[at], right = keys[at + stride];
        const bool falls = (at & run) == 0;
        if (falls == (left < right)) {
          keys[at] = right;
          keys[at + stride] = left;
        }
      }
    }
  }
  team.sync();
}

// Calls put(i, key) for the i-th best key of list [count], i < k. `sorted` is scratch that the team
// shares, as long as the longest list. If the list has fewer than k keys, or overflowed and has
// none, the others are EMPTY_KEY.
template <class Team, class Put>
SAEFAST_DEVICE void choose_row(Team& team, const int64_t* list, int32_t count, int32_t k,
                               int64_t* sorted, const Put& put) {
  count = count > 0 ? count : 0;
  for (int32_t i = team.lane(); i < count; i += Team::SIZE) sorted[i] = list[i];
  // Cutting the list first takes less time than sorting all of it.
  if (power_of_two(count) > power_of_two(k + k / 4)) {
    const Cut whole{count, EMPTY_KEY};
    count = cut_list(team, sorted, sorted, whole, RowBounds<false>{}, k, k / 4).count;
  }
  const int32_t size = power_of_two(count);
  for (int32_t i = count + team.lane(); i < size; i += Team::SIZE) sorted[i] = EMPTY_KEY;
  sort_keys(team, sorted, size);
  for (int32_t i = team.lane(); i < k; i += Team::SIZE) put(i, i < size ? sorted[i] : EMPTY_KEY);
}

}  // namespace saefast
