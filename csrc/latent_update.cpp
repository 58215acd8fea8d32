// One pass over the latents: gradient, projection, Adam and unit norm of a latent's two rows.
#include "latent_update.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "by_latent.h"
#include "isa.h"
#include "parallel.h"
#include "sparse_decode.h"

namespace saefast {

namespace {

template <class Compute>
AdamScalars<Compute> adam_scalars(const UpdateArgs<Compute>& args) {
  return {static_cast<Compute>(args.step_size),   static_cast<Compute>(args.beta2),
          static_cast<Compute>(1.0 - args.beta1), static_cast<Compute>(1.0 - args.beta2),
          static_cast<Compute>(1.0 / args.root),  static_cast<Compute>(args.eps)};
}

// Memory that a worker reuses for every latent.
template <class Compute>
struct UpdateSpace {
  std::vector<Compute> values, value_grads, gradient;
  std::vector<uint32_t> panel;
};

// The update of single latents; different latents may be updated concurrently.
template <class Compute>
class LatentUpdate {
 public:
  LatentUpdate(const UpdateArgs<Compute>& args, const ByLatent& sorted)
      : args_(args),
        sorted_(sorted),
        rows_(row_kernels_of<Compute>(active_kernels())),
        update_(update_kernels_of<Compute>(active_kernels())),
        adam_(adam_scalars(args)) {
    if (args.extra.count == 0) return;
    slots_.assign(args.m, -1);
    for (int64_t slot = 0; slot < args.extra.count; ++slot) {
      const int64_t latent = args.extra.latents[slot];
      if (latent >= 0 && latent < args.m) slots_[latent] = slot;
    }
  }

  // Updates latent j and adds its share of the inputs' gradient to `input_grad_sum` [d].
  void run(int64_t j, Compute* input_grad_sum, UpdateSpace<Compute>& space) const {
    const int64_t d = args_.d, first = sorted_.start[j], count = sorted_.count(j);
    space.values.resize(count);
    space.value_grads.resize(count);
    space.gradient.resize(std::max(d, args_.d_out));
    Compute bias_grad = 0, along = 0;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t entry = sorted_.entry[first + c];
      const Compute value = args_.values[entry], grad = args_.value_grads[entry];
      space.values[c] = value;
      space.value_grads[c] = grad;
      bias_grad += grad;
      along += value * grad;
    }
    args_.fired[j] = count;
    const int64_t slot = slots_.empty() ? -1 : slots_[j];
    if (slot >= 0) bias_grad += args_.extra.b_enc[slot];
    double square = 0;
    if (args_.update_decoder) square += decoder_row(j, slot, along, space);
    // The gradient of the inputs needs the encoder before its update.
    if (count > 0 || slot >= 0)
      update_.add_scaled(input_grad_sum, args_.w_enc + j * d, bias_grad, d);
    if (args_.update_encoder) square += encoder_row(j, slot, space);
    bias_grad *= static_cast<Compute>(args_.factor);
    if (args_.squares != nullptr) {
      args_.squares[j] = square + static_cast<double>(bias_grad) * bias_grad;
    } else {
      update_.adam(args_.b_enc + j, args_.b_enc_moments.first + j, args_.b_enc_moments.second + j,
                   &bias_grad, 1, adam_);
    }
  }

 private:
  // Each computes a row's gradient, and returns its squared norm if `squares` is wanted; otherwise
  // it updates the row and returns 0.
  double decoder_row(int64_t j, int64_t slot, Compute along, UpdateSpace<Compute>& space) const {
    const int64_t d = args_.d_out, count = sorted_.count(j);
    const int64_t* tokens = sorted_.row.data() + sorted_.start[j];
    Compute* const gradient = space.gradient.data();
    Compute* const row = args_.w_dec + j * d;
    rows_.weighted_sum(residual_of(j), tokens, space.values.data(), count, d, gradient);
    if (slot >= 0) {
      const Compute* const more = args_.extra.w_dec + slot * d;
      update_.add_scaled(gradient, more, 1, d);
      along += dot(more, row, d);
    }
    const bool project = args_.unit_norm && args_.remove_parallel;
    if (args_.decoder_decay.any()) {
      decay(args_.decoder_decay, j, row, gradient, d);
      if (project) update_.add_scaled(gradient, row, -dot(gradient, row, d), d);
    } else if (project && (count > 0 || slot >= 0)) {
      // w_dec . gradient = sum_i value_i (w_dec . residual_i) = sum_i value_i * value_grad_i, so
      // the component along a row of norm one costs no product of length d.
      update_.add_scaled(gradient, row, -along, d);
    }
    const double square = finish(row, args_.w_dec_moments, j, gradient, d);
    if (args_.unit_norm && args_.squares == nullptr) {
      const Compute norm = std::sqrt(update_.squared_norm(row, d));
      if (norm > 0) update_.multiply(row, 1 / norm, d);
    }
    return square;
  }

  double encoder_row(int64_t j, int64_t slot, UpdateSpace<Compute>& space) const {
    const int64_t d = args_.d;
    const int64_t* tokens = sorted_.row.data() + sorted_.start[j];
    Compute* const gradient = space.gradient.data();
    Compute* const row = args_.w_enc + j * d;
    rows_.weighted_sum(args_.inputs, tokens, space.value_grads.data(), sorted_.count(j), d,
                       gradient);
    if (slot >= 0) update_.add_scaled(gradient, args_.extra.w_enc + slot * d, 1, d);
    if (args_.encoder_decay.any()) decay(args_.encoder_decay, j, row, gradient, d);
    return finish(row, args_.w_enc_moments, j, gradient, d);
  }

  // Adds the penalty terms to the gradient of row j.
  void decay(const Decay<Compute>& of, int64_t j, const Compute* row, Compute* gradient,
             int64_t d) const {
    if (of.shrink != nullptr) update_.add_scaled(gradient, row, of.shrink[j], d);
    if (of.sign == 0) return;
    for (int64_t i = 0; i < d; ++i)
      gradient[i] += row[i] > 0 ? of.sign : (row[i] < 0 ? -of.sign : Compute(0));
  }

  // Multiplies a gradient by `factor`; then updates the row by Adam, or returns the squared norm.
  double finish(Compute* row, const Moments<Compute>& moments, int64_t j, Compute* gradient,
                int64_t d) const {
    if (args_.factor != 1) update_.multiply(gradient, static_cast<Compute>(args_.factor), d);
    if (args_.squares != nullptr) return update_.squared_norm(gradient, d);
    update_.adam(row, moments.first + j * d, moments.second + j * d, gradient, d, adam_);
    return 0;
  }

  Compute dot(const Compute* a, const Compute* b, int64_t d) const {
    const int64_t only = 0;
    Compute product;
    rows_.dots(a, b, &only, 1, d, &product);
    return product;
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
  std::vector<int64_t>
      slots_;  // [m] slot of each latent in the extra gradients, or -1; may be empty
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

}  // namespace

template <class Compute>
void latent_update(const UpdateArgs<Compute>& args, Screen screen, const Panels* packed,
                   int threads) {
  check_indices(args.indices, args.n, args.k, args.m, threads);
  check_groups(args);
  const ByLatent sorted = sort_by_latent(args.indices, args.n, args.k, args.m,
                                         [&](int64_t entry) { return args.values[entry] != 0; });
  const LatentUpdate<Compute> update(args, sorted);
  const Kernels& kernels = active_kernels();
  const ScreenPlan plan = plan_screen(kernels, screen);
  // A task is a fixed number of latents, the same for every panel width, so that the sum of the
  // inputs' gradients has a fixed order.
  constexpr int64_t kLatentsPerTask = 64;
  const int64_t tasks = (args.m + kLatentsPerTask - 1) / kLatentsPerTask;
  std::vector<Compute> partial(tasks * args.d, 0);
  std::vector<UpdateSpace<Compute>> spaces(std::max(threads, 1));
  Lowest not_finite;
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    UpdateSpace<Compute>& space = spaces[worker];
    const int64_t first = task * kLatentsPerTask, end = std::min(args.m, first + kLatentsPerTask);
    for (int64_t j = first; j < end; ++j) update.run(j, partial.data() + task * args.d, space);
    if (packed == nullptr) return;
    // The rows were just written and are in a cache: packing them again reads no memory.
    space.panel.resize(plan.tile.columns * plan.units_of(args.d));
    for (int64_t panel = first / plan.tile.columns; panel * plan.tile.columns < end; ++panel) {
      const int64_t row = pack_panel<Compute>(kernels, plan, args.w_enc, nullptr, args.d, args.m,
                                              panel, *packed, space.panel.data());
      if (row >= 0) not_finite.report(row);
    }
  });
  std::fill(args.input_grad_sum, args.input_grad_sum + args.d, Compute(0));
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t i = 0; i < args.d; ++i) args.input_grad_sum[i] += partial[task * args.d + i];
  if (not_finite.any())
    throw std::invalid_argument("w_enc must stay finite, but the update made row " +
                                std::to_string(not_finite.value()) +
                                " NaN or infinite; the learning rate may be too high");
}

template void latent_update(const UpdateArgs<float>&, Screen, const Panels*, int);
template void latent_update(const UpdateArgs<double>&, Screen, const Panels*, int);

}  // namespace saefast
