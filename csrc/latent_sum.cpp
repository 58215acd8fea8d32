// Sums over the tokens of each latent: a task computes a fixed number of latents.
#include "latent_sum.h"

#include <algorithm>
#include <vector>

#include "by_latent.h"
#include "isa.h"
#include "parallel.h"
#include "sparse_decode.h"

namespace saefast {

template <class Storage>
void latent_sum(const Storage* values, const int64_t* indices, const Storage* rows, int64_t n,
                int64_t k, int64_t d, int64_t m, Storage* sums, int threads) {
  using Compute = compute_t<Storage>;
  check_indices(indices, n, k, m, threads);
  const Kernels& kernels = active_kernels();
  const ByLatent sorted =
      sort_by_latent(indices, n, k, m, [&](int64_t entry) { return widen(values[entry]) != 0; });
  struct Space {
    std::vector<Compute> weights, row;
  };
  std::vector<Space> spaces(std::max(threads, 1));
  constexpr int64_t kLatentsPerTask = 64;
  parallel_for((m + kLatentsPerTask - 1) / kLatentsPerTask, threads, [&](int64_t task, int worker) {
    Space& space = spaces[worker];
    space.row.resize(d);
    const int64_t end = std::min(m, (task + 1) * kLatentsPerTask);
    for (int64_t j = task * kLatentsPerTask; j < end; ++j) {
      const int64_t first = sorted.start[j], count = sorted.count(j);
      space.weights.resize(count);
      for (int64_t c = 0; c < count; ++c) space.weights[c] = widen(values[sorted.entry[first + c]]);
      row_kernels_of<Storage>(kernels).weighted_sum(
          rows, sorted.row.data() + first, space.weights.data(), count, d, space.row.data());
      for (int64_t i = 0; i < d; ++i) assign(sums[j * d + i], space.row[i]);
    }
  });
}

#define SAEFAST_LATENT_SUM(Storage)                                                          \
  template void latent_sum(const Storage*, const int64_t*, const Storage*, int64_t, int64_t, \
                           int64_t, int64_t, Storage*, int);
SAEFAST_LATENT_SUM(float)
SAEFAST_LATENT_SUM(double)
SAEFAST_LATENT_SUM(bf16)
#undef SAEFAST_LATENT_SUM

}  // namespace saefast
