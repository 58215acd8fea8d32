// Weight gradients, Adam and renormalisation in one pass over the latents; no gradient is stored.
#pragma once
#include <cstdint>

#include "panels.h"

namespace saefast {

template <class Compute>
struct Moments {
  Compute* first;
  Compute* second;
};

// Gradients that come from elsewhere, for the rows of `count` latents, each named at most once.
// One that is out of range stands for none.
template <class Compute>
struct ExtraGradients {
  const int64_t* latents;
  int64_t count;
  const Compute* w_enc;  // [count, d]
  const Compute* b_enc;  // [count]
  const Compute* w_dec;  // [count, d]
};

// What the gradient of a weight gets besides the data's: a multiple of its row, one multiple for
// each latent, and a multiple of the signs of the weights.
template <class Compute>
struct Decay {
  const Compute* shrink;  // [m] or null
  Compute sign;
  bool any() const { return shrink != nullptr || sign != 0; }
};

template <class Compute>
struct UpdateArgs {
  // What the forward pass left: indices and values [n, k], the gradients of the values [n, k]
  // (zero where the value is not positive), the gradients of the reconstructions
  // [groups, n, d_out], and the input of the encoder [n, d].
  const int64_t* indices;
  const Compute* values;
  const Compute* value_grads;
  const Compute* residual;
  const Compute* inputs;
  int64_t n, k, d, m, d_out;
  // Latents below group_ends[g], and not below the end before, learn from reconstruction g. Null:
  // there is one reconstruction.
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
  // Decoder rows have norm one: they are renormalised after Adam, and if `remove_parallel` the
  // gradient's part along the row is removed before it.
  bool unit_norm, remove_parallel;
  bool update_encoder, update_decoder;  // false leaves w_enc or w_dec, and its moments, alone
  Decay<Compute> encoder_decay, decoder_decay;
  double factor;            // multiplies every gradient
  Compute* input_grad_sum;  // [d] the gradient of the encoder's inputs, summed over the tokens
  int64_t* fired;           // [m] on how many tokens the latent's value was positive
  // [m] if not null, nothing is updated: the squared length of each latent's gradient instead
  double* squares;
};

// `packed`, if not null, is the encoder's panels for `screen` and is refreshed.
template <class Compute>
void latent_update(const UpdateArgs<Compute>& args, Screen screen, const Panels* packed,
                   int threads);

}  // namespace saefast
