// Sums of k decoder rows per token, and the products that their gradients need.
//
// Sums have a fixed order: results have the same bits for every number of threads and instruction
// set. All functions throw std::invalid_argument for an index out of range, before they write.
// Concurrent calls are safe on different outputs.
#pragma once
#include <cstdint>

#include "storage.h"

namespace saefast {

// A sparse code and its decoder.
template <class Storage>
struct DecodeArgs {
  const Storage* values;   // [n, k]
  const int64_t* indices;  // [n, k]
  const Storage* weight;   // [m, d]
  const Storage* bias;     // [d] or null
  int64_t n, k, d, m;
};

// Checks indices [n, k]; throws std::invalid_argument if one is not in [0, m).
void check_indices(const int64_t* indices, int64_t n, int64_t k, int64_t m, int threads);

// Computes out[i] = sum_c values[i, c] * weight[indices[i, c]] + bias, in the order of c, as [n,
// d]. Decoder rows whose value is zero are not read.
template <class Storage>
void sparse_decode(const DecodeArgs<Storage>& args, Storage* out, int threads);

// Computes out[i, c] = rows[i] . weight[indices[i, c]], as [n, k]; rows is [n, d], weight [m, d].
template <class Storage>
void gather_dots(const Storage* rows, const Storage* weight, const int64_t* indices, int64_t n,
                 int64_t k, int64_t d, int64_t m, Storage* out, int threads);

// Throws std::invalid_argument unless `ranks` is a power of two from 2 to most_ranks<Compute>().
template <class Compute>
void check_ranks(int ranks);

// Computes the part of `gather_dots` that one of several ranks has: rows [n, columns] and weight
// [m, columns] hold some columns of rows of `width`; see UpdateKernels::partial_dots.
template <class Compute>
void partial_dots(const Compute* rows, const Compute* weight, const int64_t* indices, int64_t n,
                  int64_t k, int64_t width, int64_t columns, int64_t m, int ranks, Compute* out,
                  int threads);

// Decodes row by row, and computes what training needs while the decoder rows are in a cache:
// residual = factor * (decoded - target) [n, d], and value_grads[i, c] = residual[i] .
// weight[indices[i, c]] if values[i, c] != 0, otherwise 0. Returns the sum of squares of decoded -
// target.
template <class Compute>
double decode_residual(const DecodeArgs<Compute>& args, const Compute* target, Compute factor,
                       Compute* residual, Compute* value_grads, int threads);

}  // namespace saefast
