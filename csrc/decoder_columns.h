// The decoder's part of `latent_update` for one of several ranks, each of which has some columns of
// W_dec of all latents. Sums over columns leave the rank as partial sums, so the update takes
// passes between which the ranks add them.
#pragma once
#include "latent_update.h"

namespace saefast {

// Results of a pass over the decoder.
enum class ColumnsPass {
  along,    // products of every row with its gradient, with penalties
  squares,  // squared norms of the gradients
  update,   // the update by Adam, and the squared norms of the updated rows
};

// The operands of `decoder_columns` beside those of `latent_update`, of which the encoder's are not
// read. Column i of W_dec is on this rank if i % ranks == r for some r; w_dec, its moments,
// residual and extra.w_dec hold only these columns.
template <class Compute>
struct ColumnsArgs {
  int64_t width;               // columns of W_dec on all ranks
  int ranks;                   // power of two from 2 to most_ranks<Compute>()
  const Compute* along;        // [m] products of rows with gradients; null: from value_grads
  const Compute* extra_along;  // [extra.count] products of rows with extra.w_dec; null: no extra
  Compute* partial;            // [m] output: this rank's part of the sums that the pass computes
};

// Makes one pass. `update` does not renormalise the rows: the norms are not known before the ranks
// have added their parts. Added by a tree of halves over ranks, p[r] += p[r + ranks / 2] and so on,
// the results have the bits that `latent_update` computes with whole rows. Throws
// std::invalid_argument for an index out of range or a wrong number of ranks.
template <class Compute>
void decoder_columns(const UpdateArgs<Compute>& args, const ColumnsArgs<Compute>& columns,
                     ColumnsPass pass, int threads);

}  // namespace saefast
