// Gradients of a latent's rows of W_enc and W_dec, shared by the updates of whole rows and of the
// columns that one of several ranks has.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "by_latent.h"
#include "isa.h"
#include "latent_update.h"

namespace saefast {

// Memory that a worker reuses for every latent.
template <class Compute>
struct UpdateSpace {
  std::vector<Compute> values, value_grads, gradient;
  std::vector<uint32_t> panel;
};

// Sums over the entries of a latent: the gradient of its bias, and the component of the gradient of
// its decoder row along the row, if the row has norm one.
template <class Compute>
struct LatentSums {
  Compute bias_grad = 0, along = 0;
};

// Throws std::invalid_argument unless group_ends ascend up to m.
template <class Compute>
void check_groups(const UpdateArgs<Compute>& args) {
  if (args.group_ends == nullptr) return;
  int64_t before = 0;
  for (int64_t g = 0; g < args.groups; ++g) {
    if (args.group_ends[g] < before)
      throw std::invalid_argument("group_ends must ascend, got " +
                                  std::to_string(args.group_ends[g]) + " after " +
                                  std::to_string(before) + " at entry " + std::to_string(g));
    before = args.group_ends[g];
  }
  if (before != args.m)
    throw std::invalid_argument("group_ends must end with the number of latents, " +
                                std::to_string(args.m) + ", got " + std::to_string(before));
}

// The gradients of single latents; different latents may be computed concurrently.
template <class Compute>
class LatentRows {
 public:
  LatentRows(const UpdateArgs<Compute>& args, const ByLatent& sorted)
      : args_(args),
        sorted_(sorted),
        rows_(row_kernels_of<Compute>(active_kernels())),
        update_(update_kernels_of<Compute>(active_kernels())),
        adam_{static_cast<Compute>(args.step_size),   static_cast<Compute>(args.beta2),
              static_cast<Compute>(1.0 - args.beta1), static_cast<Compute>(1.0 - args.beta2),
              static_cast<Compute>(1.0 / args.root),  static_cast<Compute>(args.eps)} {
    if (args.extra.count == 0) return;
    slots_.assign(args.m, -1);
    for (int64_t slot = 0; slot < args.extra.count; ++slot) {
      const int64_t latent = args.extra.latents[slot];
      if (latent >= 0 && latent < args.m) slots_[latent] = slot;
    }
  }

  int64_t count(int64_t j) const { return sorted_.count(j); }
  // Returns the latent's entry of the extra gradients, or -1.
  int64_t slot(int64_t j) const { return slots_.empty() ? -1 : slots_[j]; }
  // Returns whether the gradients of the latent may be other than zero, apart from penalties.
  bool learns(int64_t j) const { return count(j) > 0 || slot(j) >= 0; }

  // Copies the latent's values and their gradients to `space`, and makes room for its gradient.
  LatentSums<Compute> load(int64_t j, UpdateSpace<Compute>& space) const {
    const int64_t first = sorted_.start[j], number = count(j);
    space.values.resize(number);
    space.value_grads.resize(number);
    space.gradient.resize(std::max(args_.d, args_.d_out));
    LatentSums<Compute> sums;
    for (int64_t c = 0; c < number; ++c) {
      const int64_t entry = sorted_.entry[first + c];
      const Compute value = args_.values[entry], grad = args_.value_grads[entry];
      space.values[c] = value;
      space.value_grads[c] = grad;
      sums.bias_grad += grad;
      sums.along += value * grad;
    }
    return sums;
  }

  // Writes the gradient of the loaded latent's row of W_enc, with penalties, to `gradient` [d].
  void encoder_gradient(int64_t j, const UpdateSpace<Compute>& space, Compute* gradient) const {
    const int64_t d = args_.d;
    rows_.weighted_sum(args_.inputs, tokens_of(j), space.value_grads.data(), count(j), d, gradient);
    if (slot(j) >= 0) update_.add_scaled(gradient, args_.extra.w_enc + slot(j) * d, 1, d);
    if (args_.encoder_decay.any()) decay(args_.encoder_decay, j, args_.w_enc + j * d, gradient, d);
  }

  // Writes the gradient of the loaded latent's row of W_dec, with penalties, to `gradient` [d_out].
  void decoder_gradient(int64_t j, const UpdateSpace<Compute>& space, Compute* gradient) const {
    const int64_t d = args_.d_out;
    rows_.weighted_sum(residual_of(j), tokens_of(j), space.values.data(), count(j), d, gradient);
    if (slot(j) >= 0) update_.add_scaled(gradient, args_.extra.w_dec + slot(j) * d, 1, d);
    if (args_.decoder_decay.any()) decay(args_.decoder_decay, j, args_.w_dec + j * d, gradient, d);
  }

  // Removes the component `along` a row of W_dec from its gradient.
  void project(int64_t j, Compute along, Compute* gradient) const {
    const int64_t d = args_.d_out;
    update_.add_scaled(gradient, args_.w_dec + j * d, -along, d);
  }

  // Multiplies a gradient [d] by `factor`.
  void limit(Compute* gradient, int64_t d) const {
    if (args_.factor != 1) update_.multiply(gradient, static_cast<Compute>(args_.factor), d);
  }

  // Updates a parameter of `count` numbers by Adam.
  void adam(Compute* parameter, const Moments<Compute>& moments, int64_t at,
            const Compute* gradient, int64_t count) const {
    update_.adam(parameter + at, moments.first + at, moments.second + at, gradient, count, adam_);
  }

  // Returns a . b.
  Compute dot(const Compute* a, const Compute* b, int64_t d) const {
    const int64_t only = 0;
    Compute product;
    rows_.dots(a, b, &only, 1, d, &product);
    return product;
  }

  const UpdateKernels<Compute>& kernels() const { return update_; }

 private:
  const int64_t* tokens_of(int64_t j) const { return sorted_.row.data() + sorted_.start[j]; }

  // Adds the penalty terms to the gradient of row j.
  void decay(const Decay<Compute>& of, int64_t j, const Compute* row, Compute* gradient,
             int64_t d) const {
    if (of.shrink != nullptr) update_.add_scaled(gradient, row, of.shrink[j], d);
    if (of.sign == 0) return;
    for (int64_t i = 0; i < d; ++i)
      gradient[i] += row[i] > 0 ? of.sign : (row[i] < 0 ? -of.sign : Compute(0));
  }

  // Returns the reconstruction gradients [n, d_out] that latent j learns from.
  const Compute* residual_of(int64_t j) const {
    const int64_t* const ends = args_.group_ends;
    if (ends == nullptr) return args_.residual;
    const int64_t group = std::upper_bound(ends, ends + args_.groups, j) - ends;
    return args_.residual + group * args_.n * args_.d_out;
  }

  const UpdateArgs<Compute>& args_;
  const ByLatent& sorted_;
  const RowKernels<Compute>& rows_;
  const UpdateKernels<Compute>& update_;
  const AdamScalars<Compute> adam_;
  // [m] slot of each latent in the extra gradients, or -1; may be empty
  std::vector<int64_t> slots_;
};

}  // namespace saefast
