// One pass over the latents: gradient, projection, Adam and unit norm of a latent's two rows.
#include "latent_update.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "latent_rows.h"
#include "parallel.h"
#include "sparse_decode.h"

namespace saefast {

namespace {

// The update of single latents; different latents may be updated concurrently.
template <class Compute>
class LatentUpdate {
 public:
  LatentUpdate(const UpdateArgs<Compute>& args, const ByLatent& sorted)
      : args_(args), latents_(args, sorted) {}

  // Updates latent j and adds its share of the inputs' gradient to `input_grad_sum` [d].
  void run(int64_t j, Compute* input_grad_sum, UpdateSpace<Compute>& space) const {
    if (args_.stored != nullptr && args_.squares == nullptr) return apply_stored(j);
    const int64_t d = args_.d, slot = latents_.slot(j);
    auto [bias_grad, along] = latents_.load(j, space);
    args_.fired[j] = latents_.count(j);
    if (slot >= 0) bias_grad += args_.extra.b_enc[slot];
    Compute* const kept =
        args_.stored == nullptr ? nullptr : args_.stored->template row<Compute>(j);
    double square = args_.squares == nullptr ? 0 : args_.squares[j];
    if (args_.update_decoder) {
      Compute* const gradient = kept == nullptr ? space.gradient.data() : kept;
      decoder_gradient(j, along, space, gradient);
      square += finish_decoder(j, gradient);
    }
    // The gradient of the inputs needs the encoder before its update.
    if (latents_.learns(j))
      latents_.kernels().add_scaled(input_grad_sum, args_.w_enc + j * d, bias_grad, d);
    if (args_.update_encoder) {
      Compute* const gradient = kept == nullptr ? space.gradient.data() : kept + args_.d_out;
      latents_.encoder_gradient(j, space, gradient);
      square += finish(args_.w_enc, args_.w_enc_moments, j, gradient, d);
    }
    if (kept != nullptr) kept[args_.d_out + d] = bias_grad;
    square += finish_bias(j, bias_grad);
    if (args_.squares != nullptr) args_.squares[j] = square;
  }

 private:
  // Updates latent j by the gradients that a call with `squares` stored.
  void apply_stored(int64_t j) const {
    Compute* const kept = args_.stored->template row<Compute>(j);
    if (args_.update_decoder) finish_decoder(j, kept);
    if (args_.update_encoder)
      finish(args_.w_enc, args_.w_enc_moments, j, kept + args_.d_out, args_.d);
    finish_bias(j, kept[args_.d_out + args_.d]);
  }

  // Writes the gradient of the loaded latent's row of W_dec to `gradient` [d_out].
  void decoder_gradient(int64_t j, Compute along, const UpdateSpace<Compute>& space,
                        Compute* gradient) const {
    const int64_t d = args_.d_out, slot = latents_.slot(j);
    const Compute* const row = args_.w_dec + j * d;
    latents_.decoder_gradient(j, space, gradient);
    if (!args_.unit_norm || !args_.remove_parallel) return;
    if (args_.decoder_decay.any()) {
      latents_.project(j, latents_.dot(gradient, row, d), gradient);
    } else if (latents_.learns(j)) {
      // w_dec . gradient = sum_i value_i (w_dec . residual_i) = sum_i value_i * value_grad_i, so
      // the component along a row of norm one costs no product of length d.
      if (slot >= 0) along += latents_.dot(args_.extra.w_dec + slot * d, row, d);
      latents_.project(j, along, gradient);
    }
  }

  // Updates a row of W_dec, or returns the squared norm of its gradient.
  double finish_decoder(int64_t j, Compute* gradient) const {
    const int64_t d = args_.d_out;
    const double square = finish(args_.w_dec, args_.w_dec_moments, j, gradient, d);
    if (args_.unit_norm && args_.squares == nullptr) {
      Compute* const row = args_.w_dec + j * d;
      const Compute norm = std::sqrt(latents_.kernels().squared_norm(row, d));
      if (norm > 0) latents_.kernels().multiply(row, 1 / norm, d);
    }
    return square;
  }

  // Returns the squared norm of the gradient of row j; or multiplies it by `factor` and updates the
  // row by Adam, and returns zero.
  double finish(Compute* parameter, const Moments<Compute>& moments, int64_t j, Compute* gradient,
                int64_t d) const {
    latents_.limit(gradient, d);
    if (args_.squares != nullptr) return latents_.kernels().squared_norm(gradient, d);
    latents_.adam(parameter, moments, j * d, gradient, d);
    return 0;
  }

  // The same for the bias.
  double finish_bias(int64_t j, Compute gradient) const {
    gradient *= static_cast<Compute>(args_.factor);
    if (args_.squares != nullptr) return static_cast<double>(gradient) * gradient;
    latents_.adam(args_.b_enc, args_.b_enc_moments, j, &gradient, 1);
    return 0;
  }

  const UpdateArgs<Compute>& args_;
  const LatentRows<Compute> latents_;
};

}  // namespace

template <class Compute>
void latent_update(const UpdateArgs<Compute>& args, Screen screen, const Panels* packed,
                   int threads) {
  const bool stored = args.stored != nullptr && args.squares == nullptr;
  ByLatent sorted;
  if (!stored) {
    check_indices(args.indices, args.n, args.k, args.m, threads);
    check_groups(args);
    sorted = sort_by_latent(args.indices, args.n, args.k, args.m,
                            [&](int64_t entry) { return args.values[entry] != 0; });
  }
  const LatentUpdate<Compute> update(args, sorted);
  const Kernels& kernels = active_kernels();
  const ScreenPlan plan = plan_screen(kernels, screen);
  // A task is a fixed number of latents, the same for every panel width, so that the sum of the
  // inputs' gradients has a fixed order.
  const int64_t tasks = (args.m + kLatentsPerTask - 1) / kLatentsPerTask;
  const bool own_parts = args.input_grad_parts == nullptr && !stored;
  std::vector<Compute> sums(own_parts ? tasks * args.d : 0, 0);
  Compute* const partial = own_parts ? sums.data() : args.input_grad_parts;
  std::vector<UpdateSpace<Compute>> spaces(std::max(threads, 1));
  Lowest not_finite;
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    UpdateSpace<Compute>& space = spaces[worker];
    const int64_t first = task * kLatentsPerTask, end = std::min(args.m, first + kLatentsPerTask);
    Compute* const sum = stored ? nullptr : partial + task * args.d;
    for (int64_t j = first; j < end; ++j) update.run(j, sum, space);
    if (packed == nullptr) return;
    // The rows were just written and are in a cache: packing them again reads no memory.
    space.panel.resize(plan.tile.columns * plan.units_of(args.d));
    for (int64_t panel = first / plan.tile.columns; panel * plan.tile.columns < end; ++panel) {
      const int64_t row = pack_panel<Compute>(kernels, plan, args.w_enc, nullptr, args.d, args.m,
                                              panel, *packed, space.panel.data());
      if (row >= 0) not_finite.report(row);
    }
  });
  if (!stored) {
    std::fill(args.input_grad_sum, args.input_grad_sum + args.d, Compute(0));
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t i = 0; i < args.d; ++i) args.input_grad_sum[i] += partial[task * args.d + i];
  }
  if (not_finite.any())
    throw std::invalid_argument("w_enc must stay finite, but the update made row " +
                                std::to_string(not_finite.value()) +
                                " NaN or infinite; the learning rate may be too high");
}

template void latent_update(const UpdateArgs<float>&, Screen, const Panels*, int);
template void latent_update(const UpdateArgs<double>&, Screen, const Panels*, int);

}  // namespace saefast
