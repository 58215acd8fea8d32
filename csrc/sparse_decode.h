// Sums of k decoder rows per token, and the products that their gradients need.
#pragma once
#include <cstdint>

#include "storage.h"

namespace saefast {

template <class Storage>
struct DecodeArgs {
  const Storage* values;   // [n, k]
  const int64_t* indices;  // [n, k]
  const Storage* weight;   // [m, d]
  const Storage* bias;     // [d] or null
  int64_t n, k, d, m;
};

// Throws std::invalid_argument for an index that is not in [0, m).
void check_indices(const int64_t* indices, int64_t n, int64_t k, int64_t m, int threads);

// out[i] = sum_c values[i, c] * weight[indices[i, c]] + bias, in the order of c. Rows whose value
// is zero are not read.
template <class Storage>
void sparse_decode(const DecodeArgs<Storage>& args, Storage* out, int threads);

// out[i, c] = rows[i] . weight[indices[i, c]]
template <class Storage>
void gather_dots(const Storage* rows, const Storage* weight, const int64_t* indices, int64_t n,
                 int64_t k, int64_t d, int64_t m, Storage* out, int threads);

// Decodes row by row and keeps what training needs while the decoder rows are near:
// residual = factor * (decoded - target), value_grads[i, c] = residual[i] . weight[indices[i, c]]
// where values[i, c] > 0 and 0 elsewhere. Returns the sum of squares of decoded - target.
template <class Compute>
double decode_residual(const DecodeArgs<Compute>& args, const Compute* target, Compute factor,
                       Compute* residual, Compute* value_grads, int threads);

}  // namespace saefast
