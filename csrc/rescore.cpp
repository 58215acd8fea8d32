// Exact scores of the candidates of one row, and the selection of its result.
#include "rescore.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace saefast {

namespace {

// Returns whether a score comes first in a result by absolute value. A score of -infinity, that of
// a masked latent, comes last there, too.
template <class Score>
bool has_larger_size(const Scored<Score>& one, const Scored<Score>& other) {
  const auto sized = [](const Scored<Score>& score) {
    return Scored<Score>{score.value == -INFINITY ? score.value : std::fabs(score.value), score.id};
  };
  return sized(one) < sized(other);
}

// Writes the k best of `space.scored` as the result of a row, followed by zeros if there are fewer.
template <class Storage>
void write_best(const EncodeArgs<Storage>& args, int64_t row, FinishSpace<Storage>& space) {
  auto& scored = space.scored;
  const int64_t count = std::min<int64_t>(args.k, scored.size());
  if (args.absolute) {
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end(),
                      has_larger_size<compute_t<Storage>>);
  } else {
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end());
  }
  Storage* const values = args.values + row * args.k;
  int64_t* const indices = args.indices + row * args.k;
  for (int64_t c = 0; c < count; ++c) {
    assign(values[c], scored[c].value);
    indices[c] = scored[c].id;
  }
  std::fill(values + count, values + args.k, Storage{});
  std::fill(indices + count, indices + args.k, 0);
}

// Writes the exact scores of `space.ids` to `space.scored`.
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

// Keeps those of `space.ids` whose exact score may belong to the result. With each column's own
// bound, instead of the largest one, most candidates are dropped.
template <class Storage>
void keep_possible(const EncodeArgs<Storage>& args, const Columns& columns,
                   const ScreenedRow& screened, FinishSpace<Storage>& space) {
  const int64_t count = static_cast<int64_t>(space.ids.size());
  const auto error = [&](int64_t c) {
    const int64_t j = space.ids[c];
    return screened.bound.reach(columns.norm[j], columns.lost[j], columns.slack[j]);
  };
  const auto rank = [&](int64_t c) {
    return args.absolute ? std::fabs(space.screened[c]) : space.screened[c];
  };
  int64_t kept = 0;
  if (args.threshold) {
    for (int64_t c = 0; c < count; ++c)
      if (space.screened[c] > -error(c)) space.ids[kept++] = space.ids[c];
  } else {
    space.lower.resize(count);
    for (int64_t c = 0; c < count; ++c) space.lower[c] = rank(c) - error(c);
    std::nth_element(space.lower.begin(), space.lower.begin() + (args.k - 1), space.lower.end(),
                     std::greater<float>());
    const float floor = space.lower[args.k - 1];
    for (int64_t c = 0; c < count; ++c)
      if (rank(c) + error(c) >= floor) space.ids[kept++] = space.ids[c];
  }
  space.ids.resize(kept);
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
  const bool too_few = !args.threshold && count < args.k;  // fewer than k columns exceed -infinity
  if (!screened.screened || too_few) {
    space.ids.resize(args.m);
    std::iota(space.ids.begin(), space.ids.end(), 0);
    score_exactly(kernels, args, row, space);
  } else if (!args.rescore) {
    space.scored.resize(count);
    for (int64_t c = 0; c < count; ++c) space.scored[c] = {space.screened[c], space.ids[c]};
  } else {
    keep_possible(args, columns, screened, space);
    score_exactly(kernels, args, row, space);
  }
  if (args.threshold) {
    std::erase_if(space.scored,
                  [&](const auto& score) { return !(score.value > args.threshold[score.id]); });
    args.counts[row] = static_cast<int64_t>(space.scored.size());
  }
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
