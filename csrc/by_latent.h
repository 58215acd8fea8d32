// Entries of a sparse code sorted by latent, in the order in which sums over tokens run.
#pragma once
#include <cstdint>
#include <vector>

namespace saefast {

// Entries sorted by latent.
struct ByLatent {
  std::vector<int64_t> start;  // [m + 1] latent j has entries start[j] up to start[j + 1]
  std::vector<int64_t> row;    // token of each entry, ascending within a latent
  std::vector<int64_t> entry;  // position of each entry in the [n, k] code
  // Returns the number of entries of a latent.
  int64_t count(int64_t latent) const { return start[latent + 1] - start[latent]; }
};

// Sorts the entries of indices [n, k] by latent: a stable counting sort. Indices must be in [0, m).
// Entries e with keep(e) == false are left out.
template <class Keep>
ByLatent sort_by_latent(const int64_t* indices, int64_t n, int64_t k, int64_t m, const Keep& keep) {
  ByLatent sorted;
  sorted.start.assign(m + 1, 0);
  for (int64_t e = 0; e < n * k; ++e)
    if (keep(e)) ++sorted.start[indices[e] + 1];
  for (int64_t j = 0; j < m; ++j) sorted.start[j + 1] += sorted.start[j];
  std::vector<int64_t> next(sorted.start.begin(), sorted.start.end() - 1);
  sorted.row.resize(sorted.start[m]);
  sorted.entry.resize(sorted.start[m]);
  for (int64_t row = 0, e = 0; row < n; ++row)
    for (int64_t c = 0; c < k; ++c, ++e)
      if (keep(e)) {
        const int64_t at = next[indices[e]]++;
        sorted.row[at] = row;
        sorted.entry[at] = e;
      }
  return sorted;
}

}  // namespace saefast
