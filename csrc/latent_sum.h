// Sums over the tokens on which a latent is active: the weight gradients of encode and decode.
#pragma once
#include <cstdint>

namespace saefast {

// Computes sums[j] = the sum of values[i, c] * rows[i] over the entries (i, c) with indices[i, c]
// == j, in the order of the tokens; values and indices are [n, k], rows [n, d], sums [m, d].
// Entries of zero are left out; sums of latents without entries are zero. Results have the same
// bits for every number of threads and instruction set. Throws std::invalid_argument for an index
// out of range, before it writes.
template <class Storage>
void latent_sum(const Storage* values, const int64_t* indices, const Storage* rows, int64_t n,
                int64_t k, int64_t d, int64_t m, Storage* sums, int threads);

}  // namespace saefast
