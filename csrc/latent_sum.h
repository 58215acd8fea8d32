// Sums over the tokens on which a latent is active: the weight gradients of encode and decode.
#pragma once
#include <cstdint>

namespace saefast {

// sums[j] = sum over the entries (i, c) with indices[i, c] == j of values[i, c] * rows[i], in the
// order of the tokens; entries of zero are left out. Rows of latents without entries are zero.
template <class Storage>
void latent_sum(const Storage* values, const int64_t* indices, const Storage* rows, int64_t n,
                int64_t k, int64_t d, int64_t m, Storage* sums, int threads);

}  // namespace saefast
