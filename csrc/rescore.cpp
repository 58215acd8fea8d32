#include "rescore.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace saefast {

namespace {

template <class Storage>
void write_best(const EncodeArgs<Storage>& args, int64_t row, FinishSpace<Storage>& space) {
  auto& scored = space.scored;
  std::partial_sort(scored.begin(), scored.begin() + args.k, scored.end());
  for (int64_t c = 0; c < args.k; ++c) {
    assign(args.values[row * args.k + c], scored[c].value);
    args.indices[row * args.k + c] = scored[c].id;
  }
}

// Scores `space.ids` in full precision.
template <class Storage>
void score_exactly(const Kernels& kernels, const EncodeArgs<Storage>& args, int64_t row,
                   FinishSpace<Storage>& space) {
  using Compute = compute_t<Storage>;
  const int64_t count = static_cast<int64_t>(space.ids.size());
  space.products.resize(count);
  row_kernels_of<Storage>(kernels).dots(args.x + row * args.d, args.weight, space.ids.data(), count,
                                        args.d, space.products.data());
  space.scored.resize(count);
  for (int64_t c = 0; c < count; ++c) {
    const int64_t j = space.ids[c];
    Compute value = space.products[c];
    if (args.bias && widen(args.bias[j]) == -INFINITY) {
      value = -std::numeric_limits<Compute>::infinity();
    } else {
      if (args.bias) value += widen(args.bias[j]);
      if (args.scale) value *= widen(args.scale[j]);
    }
    space.scored[c] = {value, j};
  }
}

}  // namespace

template <class Storage>
void finish_row(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                int64_t row, const ScreenedRow& screened, const Candidates* const* lists,
                int64_t list_count, FinishSpace<Storage>& space) {
  space.ids.clear();
  space.screened.clear();
  if (screened.screened) {
    for (int64_t l = 0; l < list_count; ++l) {
      const Candidates& list = *lists[l];
      space.ids.insert(space.ids.end(), list.ids(), list.ids() + list.count());
      space.screened.insert(space.screened.end(), list.scores(), list.scores() + list.count());
    }
  }
  const int64_t count = static_cast<int64_t>(space.ids.size());
  if (count < args.k) {  // not screened, or fewer than k columns are above -infinity
    space.ids.resize(args.m);
    for (int64_t j = 0; j < args.m; ++j) space.ids[j] = j;
    score_exactly(kernels, args, row, space);
    return write_best(args, row, space);
  }
  if (!args.rescore) {
    space.scored.resize(count);
    for (int64_t c = 0; c < count; ++c) space.scored[c] = {space.screened[c], space.ids[c]};
    return write_best(args, row, space);
  }
  // With each column's own bound, rather than the largest, most candidates fall away.
  const auto error = [&](int64_t c) {
    const int64_t j = space.ids[c];
    return screened.bound.reach(columns.norm[j], columns.lost[j], columns.slack[j]);
  };
  space.lower.resize(count);
  for (int64_t c = 0; c < count; ++c) space.lower[c] = space.screened[c] - error(c);
  std::nth_element(space.lower.begin(), space.lower.begin() + (args.k - 1), space.lower.end(),
                   std::greater<float>());
  const float floor = space.lower[args.k - 1];
  int64_t kept = 0;
  for (int64_t c = 0; c < count; ++c)
    if (space.screened[c] + error(c) >= floor) space.ids[kept++] = space.ids[c];
  space.ids.resize(kept);
  score_exactly(kernels, args, row, space);
  write_best(args, row, space);
}

#define SAEFAST_FINISH(Storage)                                                                 \
  template void finish_row(const Kernels&, const EncodeArgs<Storage>&, const Columns&, int64_t, \
                           const ScreenedRow&, const Candidates* const*, int64_t,               \
                           FinishSpace<Storage>&);
SAEFAST_FINISH(float)
SAEFAST_FINISH(double)
SAEFAST_FINISH(bf16)
#undef SAEFAST_FINISH

}  // namespace saefast
