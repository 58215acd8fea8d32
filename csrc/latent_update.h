// Weight gradients, Adam and renormalisation in one pass over the latents. Gradients are stored
// only in room that the caller gives, between measuring their norm and applying them.
#pragma once
#include <cstdint>

#include "buffer.h"
#include "panels.h"

namespace saefast {

// Number of latents whose shares of the inputs' gradient are summed first, apart from those of
// others.
constexpr int64_t kLatentsPerTask = 64;

// The Adam moments of a parameter, of its shape.
template <class Compute>
struct Moments {
  Compute* first;
  Compute* second;
};

// Additional gradients for the rows of `count` latents, each named at most once. Latents out of
// range are ignored.
template <class Compute>
struct ExtraGradients {
  const int64_t* latents;  // [count]
  int64_t count;
  const Compute* w_enc;  // [count, d]
  const Compute* b_enc;  // [count]
  const Compute* w_dec;  // [count, d_out]
};

// Penalty terms of a weight's gradient: a multiple of each row, one per latent, and a multiple of
// the signs of the weights.
template <class Compute>
struct Decay {
  const Compute* shrink;  // [m] or null
  Compute sign;
  // Returns whether there is a penalty.
  bool any() const { return shrink != nullptr || sign != 0; }
};

// Gradients of all latents, between a call that measures them and the one that applies them.
class StoredGradients {
 public:
  // Makes room for `width` numbers of `item` bytes for each of m latents.
  StoredGradients(int64_t m, int64_t width, int64_t item)
      : m_(m), bytes_((width * item + kLine - 1) / kLine * kLine), memory_(m * bytes_) {}
  // Returns whether there is room for `width` numbers of type Compute for each of m latents.
  template <class Compute>
  bool fits(int64_t m, int64_t width) const {
    return m == m_ && width * static_cast<int64_t>(sizeof(Compute)) <= bytes_;
  }
  template <class Compute>
  Compute* row(int64_t j) {
    return reinterpret_cast<Compute*>(static_cast<char*>(memory_.data()) + j * bytes_);
  }

 private:
  static constexpr int64_t kLine = 64;  // rows begin at cache lines
  int64_t m_, bytes_;
  Buffer memory_;
};

// The operands of `latent_update`.
template <class Compute>
struct UpdateArgs {
  // Results of the forward pass: indices and values [n, k], the gradients of the values [n, k]
  // (zero if the value is zero), the gradients of the reconstructions [groups, n, d_out],
  // and the inputs of the encoder [n, d].
  const int64_t* indices;
  const Compute* values;
  const Compute* value_grads;
  const Compute* residual;
  const Compute* inputs;
  int64_t n, k, d, m, d_out;
  // [groups] ends of groups of latents: latents from group_ends[g - 1] up to, not including,
  // group_ends[g] learn from reconstruction g. Null: there is one reconstruction.
  const int64_t* group_ends;
  int64_t groups;
  Compute* w_enc;  // [m, d]
  Compute* b_enc;  // [m]
  Compute* w_dec;  // [m, d_out]
  Moments<Compute> w_enc_moments, b_enc_moments, w_dec_moments;
  ExtraGradients<Compute> extra;
  double step_size;  // lr / (1 - beta1^t)
  double root;       // sqrt(1 - beta2^t)
  double beta1, beta2, eps;
  // unit_norm: decoder rows are renormalised after Adam. remove_parallel: with unit_norm, the
  // component of the gradient along the row is removed before.
  bool unit_norm, remove_parallel;
  bool update_encoder, update_decoder;  // false: w_enc or w_dec, and its moments, stay unchanged
  Decay<Compute> encoder_decay, decoder_decay;
  double factor;            // factor of every gradient
  Compute* input_grad_sum;  // [d] output: gradient of the encoder's inputs, summed over tokens
  // [ceil(m / kLatentsPerTask), d] output of zeros: the summands of input_grad_sum, each of
  // kLatentsPerTask latents; or null.
  Compute* input_grad_parts;
  int64_t* fired;  // [m] output: number of tokens on which the latent's value is not zero
  // [m] the squared norm of each latent's gradients is added to them: first W_dec's, then W_enc's,
  // then the bias's. If not null, nothing is updated.
  double* squares;
  // Null, or room for d_out + d + 1 numbers for each latent: with `squares` the gradients are
  // stored there; without, they are those that a call with the same operands has stored, and are
  // overwritten; input_grad_sum and fired are then not written, and `squares` of that call were
  // zero before it.
  StoredGradients* stored;
};

// Computes the gradients of all latents and updates w_enc, b_enc and w_dec by Adam, in place.
//
// `packed`, if not null, holds the panels of w_enc for `screen` at the active level; they are
// packed again. Indices and group_ends are checked first: std::invalid_argument is thrown before
// anything is changed. It is also thrown if the update makes a row of a packed w_enc NaN or
// infinite; then the update has been applied. Results have the same bits for every number of
// threads and instruction set. Concurrent calls must not share outputs.
template <class Compute>
void latent_update(const UpdateArgs<Compute>& args, Screen screen, const Panels* packed,
                   int threads);

}  // namespace saefast
