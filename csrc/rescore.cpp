// Exact scores of the candidates of one row, and the selection of its result.
#include "rescore.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace saefast {

namespace {

// Returns whether a score comes first in a result by absolute value. A score of -infinity, as of
// a masked latent, comes last there, too.
template <class Score>
bool has_larger_size(const Scored<Score>& one, const Scored<Score>& other) {
  const auto sized = [](const Scored<Score>& score) {
    return Scored<Score>{score.value == -INFINITY ? score.value : std::fabs(score.value), score.id};
  };
  return sized(one) < sized(other);
}

// Puts the `count` best of `space.scored` first, in the order of the result.
template <class Storage>
void sort_best(const EncodeArgs<Storage>& args, int64_t count, FinishSpace<Storage>& space) {
  auto& scored = space.scored;
  if (args.absolute) {
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end(),
                      has_larger_size<compute_t<Storage>>);
  } else {
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end());
  }
}

// Writes the place of each of `space.scored` in the result to `space.places`, and returns true; or
// returns false if sorting them takes less time, or the order of values does not decide.
template <class Storage>
bool find_places(const Kernels& kernels, const EncodeArgs<Storage>& args,
                 FinishSpace<Storage>& space) {
  constexpr size_t kMost = 1024;
  if constexpr (sizeof(compute_t<Storage>) != sizeof(float)) return false;
  const size_t count = space.scored.size();
  if (count > kMost) return false;
  space.ranks.resize(count);
  space.places.resize(count);
  bool ordered = true;
  for (size_t c = 0; c < count; ++c) {
    const float value = static_cast<float>(space.scored[c].value);
    ordered &= value == value;
    space.ranks[c] = args.absolute && value != -INFINITY ? std::fabs(value) : value;
  }
  if (ordered) kernels.places(space.ranks.data(), count, space.places.data());
  return ordered;
}

// Writes the k best of `space.scored`, whose columns ascend, as the result of a row, followed by
// zeros if there are fewer.
template <class Storage>
void write_best(const Kernels& kernels, const EncodeArgs<Storage>& args, int64_t row,
                FinishSpace<Storage>& space) {
  const auto& scored = space.scored;
  const int64_t count = std::min<int64_t>(args.k, scored.size());
  Storage* const values = args.values + row * args.k;
  int64_t* const indices = args.indices + row * args.k;
  if (find_places(kernels, args, space)) {
    for (size_t c = 0; c < scored.size(); ++c) {
      const int64_t place = space.places[c];
      if (place >= count) continue;
      assign(values[place], scored[c].value);
      indices[place] = scored[c].id;
    }
  } else {
    sort_best(args, count, space);
    for (int64_t c = 0; c < count; ++c) {
      assign(values[c], scored[c].value);
      indices[c] = scored[c].id;
    }
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

// Copies the candidates of all lists, `count` together, to `space.columns` and `space.screened`.
template <class Storage>
void gather_candidates(const Candidates* const* lists, int64_t list_count, int64_t count,
                       FinishSpace<Storage>& space) {
  constexpr int64_t kRoom = 16;  // keep_from writes whole registers
  space.columns.resize(count + kRoom);
  space.screened.resize(count + kRoom);
  int64_t at = 0;
  for (int64_t l = 0; l < list_count; ++l) {
    const Candidates& list = *lists[l];
    std::copy_n(list.ids(), list.count(), space.columns.begin() + at);
    std::copy_n(list.scores(), list.count(), space.screened.begin() + at);
    at += list.count();
  }
}

// Drops candidates that the largest bound of all columns excludes, at the cost of a few passes over
// the list; returns how many remain.
template <class Storage>
int64_t keep_reached(const Kernels& kernels, const EncodeArgs<Storage>& args,
                     const Columns& columns, const ScreenedRow& screened, int64_t count,
                     FinishSpace<Storage>& space) {
  const SelectKernels& select = select_kernels_of(kernels, args.absolute);
  const float reach = screened.bound.reach(columns.most_of_all);
  const float floor = select.reached_by(space.screened.data(), count, args.k) - reach;
  return select.keep_from(space.screened.data(), space.columns.data(), count, floor - reach);
}

// Writes the candidates whose exact score may belong to the result to `space.ids`. With each
// column's own bound, instead of the largest one, most candidates are dropped.
template <class Storage>
void keep_possible(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                   const ScreenedRow& screened, int64_t count, FinishSpace<Storage>& space) {
  space.ids.clear();
  space.errors.resize(count);
  for (int64_t c = 0; c < count; ++c) {
    const int64_t j = space.columns[c];
    space.errors[c] = screened.bound.reach(columns.norm[j], columns.lost[j], columns.slack[j]);
  }
  if (args.threshold) {
    for (int64_t c = 0; c < count; ++c)
      if (space.screened[c] > -space.errors[c]) space.ids.push_back(space.columns[c]);
    return;
  }
  const auto rank = [&](int64_t c) {
    return args.absolute ? std::fabs(space.screened[c]) : space.screened[c];
  };
  space.lower.resize(count);
  for (int64_t c = 0; c < count; ++c) space.lower[c] = rank(c) - space.errors[c];
  // Any floor that k lower bounds reach is valid.
  const float floor = kernels.select.reached_by(space.lower.data(), count, args.k);
  for (int64_t c = 0; c < count; ++c)
    if (rank(c) + space.errors[c] >= floor) space.ids.push_back(space.columns[c]);
}

}  // namespace

template <class Storage>
void finish_row(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                int64_t row, const ScreenedRow& screened, const Candidates* const* lists,
                int64_t list_count, FinishSpace<Storage>& space) {
  int64_t count = 0;
  if (screened.screened)
    for (int64_t l = 0; l < list_count; ++l) count += lists[l]->count();
  const bool too_few = !args.threshold && count < args.k;  // fewer than k columns exceed -infinity
  if (!screened.screened || too_few) {
    space.ids.resize(args.m);
    std::iota(space.ids.begin(), space.ids.end(), 0);
    score_exactly(kernels, args, row, space);
  } else {
    gather_candidates(lists, list_count, count, space);
    if (!args.threshold) count = keep_reached(kernels, args, columns, screened, count, space);
    if (args.rescore) {
      keep_possible(kernels, args, columns, screened, count, space);
      score_exactly(kernels, args, row, space);
    } else {
      space.scored.resize(count);
      for (int64_t c = 0; c < count; ++c) space.scored[c] = {space.screened[c], space.columns[c]};
    }
  }
  if (args.threshold) {
    std::erase_if(space.scored,
                  [&](const auto& score) { return !(score.value > args.threshold[score.id]); });
    args.counts[row] = static_cast<int64_t>(space.scored.size());
  }
  write_best(kernels, args, row, space);
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
