// Loops over rows, written once for any `Vector`; each instruction set includes this file. The
// including file defines SAEFAST_LEVEL, and includes its vector header first.
#include <cmath>

#include "kernels.h"

namespace saefast::SAEFAST_LEVEL {

// Returns a . b. Sums run in four chains of kLanes lanes: element i belongs to chain (i / kLanes) %
// 4, lane i % kLanes. `b_next` is the next row that will be read; it is prefetched.
template <class Storage>
compute_t<Storage> dot(const Storage* a, const Storage* b, const Storage* b_next, int64_t d) {
  using V = Vector<compute_t<Storage>>;
  constexpr int64_t kLanes = V::kLanes;
  V s0 = V::zero(), s1 = V::zero(), s2 = V::zero(), s3 = V::zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
    for (int64_t line = 0; line < 4; ++line) __builtin_prefetch(b_next + i + line * kLanes);
    s0 = V::fma(V::load(a + i), V::load(b + i), s0);
    s1 = V::fma(V::load(a + i + kLanes), V::load(b + i + kLanes), s1);
    s2 = V::fma(V::load(a + i + 2 * kLanes), V::load(b + i + 2 * kLanes), s2);
    s3 = V::fma(V::load(a + i + 3 * kLanes), V::load(b + i + 3 * kLanes), s3);
  }
  V* const chains[4] = {&s0, &s1, &s2, &s3};
  for (int chain = 0; i < d; ++chain, i += kLanes) {
    V& s = *chains[chain];
    if (i + kLanes <= d) {
      s = V::fma(V::load(a + i), V::load(b + i), s);
    } else {
      s = V::fma(V::load_first(a + i, d - i), V::load_first(b + i, d - i), s);
    }
  }
  return ((s0 + s1) + (s2 + s3)).sum();
}

// See RowKernels::dots.
template <class Storage>
void dots(const Storage* row, const Storage* matrix, const int64_t* ids, int64_t count, int64_t d,
          compute_t<Storage>* out) {
  for (int64_t c = 0; c < count; ++c) {
    // Candidate rows are scattered in memory: the next one is prefetched while this one is summed.
    const Storage* next = matrix + ids[c + 1 < count ? c + 1 : c] * d;
    out[c] = dot(row, matrix + ids[c] * d, next, d);
  }
}

// Adds the sum of kRows weighted rows, in their order, to `out`, or writes it if `first`. Several
// rows at a time, so that `out` is read and written once for all of them; a long sum then has one
// rounding per row and one per group of rows. The rows after these are prefetched, since they are
// scattered in memory.
template <int kRows, class Storage>
void add_weighted_rows(const Storage* matrix, const int64_t* ids, const compute_t<Storage>* weights,
                       int64_t rows_left, bool first, int64_t d, compute_t<Storage>* out) {
  using V = Vector<compute_t<Storage>>;
  const Storage* row[kRows];
  const Storage* next[kRows];
  V weight[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = matrix + ids[r] * d;
    next[r] = matrix + ids[r + kRows < rows_left ? r + kRows : r] * d;
    weight[r] = V::fill(weights[r]);
  }
  int64_t i = 0;
  for (; i + V::kLanes <= d; i += V::kLanes) {
    V sum = V::zero();
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(next[r] + i);
      sum = V::fma(weight[r], V::load(row[r] + i), sum);
    }
    (first ? sum : V::load(out + i) + sum).store(out + i);
  }
  if (i < d) {
    V sum = V::zero();
    for (int r = 0; r < kRows; ++r) sum = V::fma(weight[r], V::load_first(row[r] + i, d - i), sum);
    (first ? sum : V::load_first(out + i, d - i) + sum).store_first(out + i, d - i);
  }
}

// See RowKernels::weighted_sum.
template <class Storage>
void weighted_sum(const Storage* matrix, const int64_t* ids, const compute_t<Storage>* weights,
                  int64_t count, int64_t d, compute_t<Storage>* out) {
  if (count == 0)
    for (int64_t i = 0; i < d; ++i) out[i] = 0;
  int64_t c = 0;
  for (; c + 4 <= count; c += 4)
    add_weighted_rows<4>(matrix, ids + c, weights + c, count - c, c == 0, d, out);
  for (; c < count; ++c)
    add_weighted_rows<1>(matrix, ids + c, weights + c, count - c, c == 0, d, out);
}

// See UpdateKernels for the functions below.
template <class Compute>
void adam(Compute* parameter, Compute* first, Compute* second, const Compute* gradient, int64_t d,
          const AdamScalars<Compute>& scalars) {
  using V = Vector<Compute>;
  const V step_size = V::fill(scalars.step_size), beta2 = V::fill(scalars.beta2);
  const V rest1 = V::fill(scalars.one_minus_beta1), rest2 = V::fill(scalars.one_minus_beta2);
  const V correction = V::fill(scalars.inverse_root_correction), eps = V::fill(scalars.eps);
  const auto step = [&](V& w, V& m, V& v, V g) {
    m = V::fma(g - m, rest1, m);
    v = V::fma(g * g, rest2, v * beta2);
    w = w - step_size * (m / (V::fma(V::sqrt(v), correction, eps)));
  };
  int64_t i = 0;
  for (; i + V::kLanes <= d; i += V::kLanes) {
    V w = V::load(parameter + i), m = V::load(first + i), v = V::load(second + i);
    step(w, m, v, V::load(gradient + i));
    w.store(parameter + i);
    m.store(first + i);
    v.store(second + i);
  }
  if (i < d) {
    const int64_t rest = d - i;
    V w = V::load_first(parameter + i, rest), m = V::load_first(first + i, rest);
    V v = V::load_first(second + i, rest);
    step(w, m, v, V::load_first(gradient + i, rest));
    w.store_first(parameter + i, rest);
    m.store_first(first + i, rest);
    v.store_first(second + i, rest);
  }
}

template <class Compute>
void add_scaled(Compute* target, const Compute* source, Compute factor, int64_t d) {
  using V = Vector<Compute>;
  const V f = V::fill(factor);
  int64_t i = 0;
  for (; i + V::kLanes <= d; i += V::kLanes)
    V::fma(f, V::load(source + i), V::load(target + i)).store(target + i);
  if (i < d)
    V::fma(f, V::load_first(source + i, d - i), V::load_first(target + i, d - i))
        .store_first(target + i, d - i);
}

template <class Compute>
void multiply(Compute* target, Compute factor, int64_t d) {
  using V = Vector<Compute>;
  const V f = V::fill(factor);
  int64_t i = 0;
  for (; i + V::kLanes <= d; i += V::kLanes) (f * V::load(target + i)).store(target + i);
  if (i < d) (f * V::load_first(target + i, d - i)).store_first(target + i, d - i);
}

template <class Compute>
Compute squared_norm(const Compute* row, int64_t d) {
  return dot(row, row, row, d);
}

// Returns a . b over the columns of one of kRanks ranks; see UpdateKernels::partial_dots. The lanes
// of `dot` that hold these columns are complete halves of its tree of sums, down to one number.
// Columns up to `padded` count as zero: `dot` adds them where the width is no multiple of kLanes.
template <int kRanks, class Compute>
Compute partial_dot(const Compute* a, const Compute* b, const Compute* b_next, int64_t count,
                    int64_t padded) {
  constexpr int64_t kLanes = Vector<Compute>::kLanes / kRanks, kSums = 4 * kLanes;
  Compute sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    __builtin_prefetch(b_next + i);
    for (int64_t e = 0; e < kSums; ++e) sums[e] = std::fma(a[i + e], b[i + e], sums[e]);
  }
  for (int64_t e = 0; i + e < padded; ++e) {
    const bool there = i + e < count;
    sums[e] = std::fma(there ? a[i + e] : Compute(0), there ? b[i + e] : Compute(0), sums[e]);
  }
  for (int64_t lane = 0; lane < kLanes; ++lane)
    sums[lane] =
        (sums[lane] + sums[lane + kLanes]) + (sums[lane + 2 * kLanes] + sums[lane + 3 * kLanes]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

template <int kRanks, class Compute>
void partial_dots_of(const Compute* row, const Compute* matrix, const int64_t* ids, int64_t count,
                     int64_t width, int64_t columns, Compute* out) {
  constexpr int64_t kLanes = Vector<Compute>::kLanes;
  const int64_t padded = (width + kLanes - 1) / kLanes * (kLanes / kRanks);
  for (int64_t c = 0; c < count; ++c) {
    const Compute* next = matrix + ids[c + 1 < count ? c + 1 : c] * columns;
    out[c] = partial_dot<kRanks>(row, matrix + ids[c] * columns, next, columns, padded);
  }
}

template <class Compute>
void partial_dots(const Compute* row, const Compute* matrix, const int64_t* ids, int64_t count,
                  int64_t width, int64_t columns, int ranks, Compute* out) {
  if (ranks == 2) return partial_dots_of<2>(row, matrix, ids, count, width, columns, out);
  if (ranks == 4) return partial_dots_of<4>(row, matrix, ids, count, width, columns, out);
  if (ranks == 8) return partial_dots_of<8>(row, matrix, ids, count, width, columns, out);
  if constexpr (Vector<Compute>::kLanes >= 16)
    return partial_dots_of<16>(row, matrix, ids, count, width, columns, out);
}

template <class Storage>
constexpr RowKernels<Storage> row_kernels() {
  return {dots<Storage>, weighted_sum<Storage>};
}
template <class Compute>
constexpr UpdateKernels<Compute> update_kernels() {
  return {adam<Compute>, add_scaled<Compute>, multiply<Compute>, squared_norm<Compute>,
          partial_dots<Compute>};
}

}  // namespace saefast::SAEFAST_LEVEL
