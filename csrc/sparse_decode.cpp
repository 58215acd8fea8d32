// Decodes and dot products, in tasks of a fixed number of rows.
#include "sparse_decode.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace saefast {

namespace {

constexpr int64_t kRowsPerTask = 32;

// Calls body(row, worker) for every row.
template <class Body>
void parallel_rows(int64_t n, int threads, const Body& body) {
  parallel_for((n + kRowsPerTask - 1) / kRowsPerTask, threads, [&](int64_t task, int worker) {
    const int64_t end = std::min(n, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row, worker);
  });
}

// Memory that a worker reuses for every row.
template <class Storage>
struct DecodeSpace {
  std::vector<int64_t> ids;
  std::vector<compute_t<Storage>> weights, row;
};

template <class Storage>
std::vector<DecodeSpace<Storage>> decode_spaces(int threads, int64_t k, int64_t d) {
  std::vector<DecodeSpace<Storage>> spaces(std::max(threads, 1));
  for (auto& space : spaces) {
    space.ids.resize(k);
    space.weights.resize(k);
    space.row.resize(d);
  }
  return spaces;
}

// Decodes one row into space.row.
template <class Storage>
void decode_row(const Kernels& kernels, const DecodeArgs<Storage>& args, int64_t row,
                DecodeSpace<Storage>& space) {
  int64_t count = 0;
  for (int64_t e = row * args.k; e < (row + 1) * args.k; ++e) {
    space.ids[count] = args.indices[e];
    space.weights[count] = widen(args.values[e]);
    if (space.weights[count] != 0) ++count;
  }
  row_kernels_of<Storage>(kernels).weighted_sum(args.weight, space.ids.data(), space.weights.data(),
                                                count, args.d, space.row.data());
  if (args.bias)
    for (int64_t i = 0; i < args.d; ++i) space.row[i] += widen(args.bias[i]);
}

}  // namespace

void check_indices(const int64_t* indices, int64_t n, int64_t k, int64_t m, int threads) {
  Lowest bad;
  parallel_rows(n, threads, [&](int64_t row, int) {
    for (int64_t c = row * k; c < (row + 1) * k; ++c)
      if (indices[c] < 0 || indices[c] >= m) return bad.report(c);
  });
  if (bad.any())
    throw std::invalid_argument("indices must be in [0, " + std::to_string(m) + "), but row " +
                                std::to_string(bad.value() / k) + ", column " +
                                std::to_string(bad.value() % k) + " is " +
                                std::to_string(indices[bad.value()]));
}

template <class Storage>
void sparse_decode(const DecodeArgs<Storage>& args, Storage* out, int threads) {
  check_indices(args.indices, args.n, args.k, args.m, threads);
  const Kernels& kernels = active_kernels();
  auto spaces = decode_spaces<Storage>(threads, args.k, args.d);
  parallel_rows(args.n, threads, [&](int64_t row, int worker) {
    decode_row(kernels, args, row, spaces[worker]);
    for (int64_t i = 0; i < args.d; ++i) assign(out[row * args.d + i], spaces[worker].row[i]);
  });
}

template <class Storage>
void gather_dots(const Storage* rows, const Storage* weight, const int64_t* indices, int64_t n,
                 int64_t k, int64_t d, int64_t m, Storage* out, int threads) {
  check_indices(indices, n, k, m, threads);
  const Kernels& kernels = active_kernels();
  std::vector<std::vector<compute_t<Storage>>> products(std::max(threads, 1),
                                                        std::vector<compute_t<Storage>>(k));
  parallel_rows(n, threads, [&](int64_t row, int worker) {
    auto& product = products[worker];
    row_kernels_of<Storage>(kernels).dots(rows + row * d, weight, indices + row * k, k, d,
                                          product.data());
    for (int64_t c = 0; c < k; ++c) assign(out[row * k + c], product[c]);
  });
}

template <class Compute>
void check_ranks(int ranks) {
  if (ranks < 2 || ranks > most_ranks<Compute>() || (ranks & (ranks - 1)) != 0)
    throw std::invalid_argument("ranks must be a power of two from 2 to " +
                                std::to_string(most_ranks<Compute>()) + ", got " +
                                std::to_string(ranks));
}

template <class Compute>
void partial_dots(const Compute* rows, const Compute* weight, const int64_t* indices, int64_t n,
                  int64_t k, int64_t width, int64_t columns, int64_t m, int ranks, Compute* out,
                  int threads) {
  check_ranks<Compute>(ranks);
  check_indices(indices, n, k, m, threads);
  const auto& kernels = update_kernels_of<Compute>(active_kernels());
  parallel_rows(n, threads, [&](int64_t row, int) {
    kernels.partial_dots(rows + row * columns, weight, indices + row * k, k, width, columns, ranks,
                         out + row * k);
  });
}

template <class Compute>
double decode_residual(const DecodeArgs<Compute>& args, const Compute* target, Compute factor,
                       Compute* residual, Compute* value_grads, int threads) {
  check_indices(args.indices, args.n, args.k, args.m, threads);
  const Kernels& kernels = active_kernels();
  auto spaces = decode_spaces<Compute>(threads, args.k, args.d);
  std::vector<double> squares(args.n);
  parallel_rows(args.n, threads, [&](int64_t row, int worker) {
    DecodeSpace<Compute>& space = spaces[worker];
    decode_row(kernels, args, row, space);
    Compute* const error = residual + row * args.d;
    for (int64_t i = 0; i < args.d; ++i) error[i] = space.row[i] - target[row * args.d + i];
    squares[row] =
        static_cast<double>(update_kernels_of<Compute>(kernels).squared_norm(error, args.d));
    update_kernels_of<Compute>(kernels).multiply(error, factor, args.d);
    const Compute* const values = args.values + row * args.k;
    int64_t count = 0;
    for (int64_t c = 0; c < args.k; ++c)
      if (values[c] != 0) space.ids[count++] = args.indices[row * args.k + c];
    row_kernels_of<Compute>(kernels).dots(error, args.weight, space.ids.data(), count, args.d,
                                          space.weights.data());
    Compute* const grads = value_grads + row * args.k;
    for (int64_t c = 0, next = 0; c < args.k; ++c)
      grads[c] = values[c] != 0 ? space.weights[next++] : 0;
  });
  double total = 0.0;
  for (double square : squares) total += square;
  return total;
}

#define SAEFAST_DECODE(Storage)                                                               \
  template void sparse_decode(const DecodeArgs<Storage>&, Storage*, int);                     \
  template void gather_dots(const Storage*, const Storage*, const int64_t*, int64_t, int64_t, \
                            int64_t, int64_t, Storage*, int);
SAEFAST_DECODE(float)
SAEFAST_DECODE(double)
SAEFAST_DECODE(bf16)
#undef SAEFAST_DECODE
template void check_ranks<float>(int);
template void check_ranks<double>(int);
template void partial_dots(const float*, const float*, const int64_t*, int64_t, int64_t, int64_t,
                           int64_t, int64_t, int, float*, int);
template void partial_dots(const double*, const double*, const int64_t*, int64_t, int64_t, int64_t,
                           int64_t, int64_t, int, double*, int);
template double decode_residual(const DecodeArgs<float>&, const float*, float, float*, float*, int);
template double decode_residual(const DecodeArgs<double>&, const double*, double, double*, double*,
                                int);

}  // namespace saefast
