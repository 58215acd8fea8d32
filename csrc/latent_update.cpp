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
    const int64_t d = args_.d, slot = latents_.slot(j);
    auto [bias_grad, along] = latents_.load(j, space);
    args_.fired[j] = latents_.count(j);
    if (slot >= 0) bias_grad += args_.extra.b_enc[slot];
    double square = args_.squares == nullptr ? 0 : args_.squares[j];
    if (args_.update_decoder) square += decoder_row(j, along, space);
    // The gradient of the inputs needs the encoder before its update.
    if (latents_.learns(j))
      latents_.kernels().add_scaled(input_grad_sum, args_.w_enc + j * d, bias_grad, d);
    if (args_.update_encoder) {
      latents_.encoder_gradient(j, space);
      square += finish(args_.w_enc, args_.w_enc_moments, j, space, d);
    }
    bias_grad *= static_cast<Compute>(args_.factor);
    if (args_.squares != nullptr) {
      args_.squares[j] = square + static_cast<double>(bias_grad) * bias_grad;
    } else {
      latents_.adam(args_.b_enc, args_.b_enc_moments, j, &bias_grad, 1);
    }
  }

 private:
  // Updates a row of W_dec, or returns the squared norm of its gradient.
  double decoder_row(int64_t j, Compute along, UpdateSpace<Compute>& space) const {
    const int64_t d = args_.d_out, slot = latents_.slot(j);
    Compute* const row = args_.w_dec + j * d;
    latents_.decoder_gradient(j, space);
    if (args_.unit_norm && args_.remove_parallel) {
      if (args_.decoder_decay.any()) {
        latents_.project(j, latents_.dot(space.gradient.data(), row, d), space);
      } else if (latents_.learns(j)) {
        // w_dec . gradient = sum_i value_i (w_dec . residual_i) = sum_i value_i * value_grad_i, so
        // the component along a row of norm one costs no product of length d.
        if (slot >= 0) along += latents_.dot(args_.extra.w_dec + slot * d, row, d);
        latents_.project(j, along, space);
      }
    }
    const double square = finish(args_.w_dec, args_.w_dec_moments, j, space, d);
    if (args_.unit_norm && args_.squares == nullptr) {
      const Compute norm = std::sqrt(latents_.kernels().squared_norm(row, d));
      if (norm > 0) latents_.kernels().multiply(row, 1 / norm, d);
    }
    return square;
  }

  // Multiplies the gradient by `factor`; then updates row j by Adam, or returns the squared norm.
  double finish(Compute* parameter, const Moments<Compute>& moments, int64_t j,
                UpdateSpace<Compute>& space, int64_t d) const {
    latents_.limit(space, d);
    const Compute* const gradient = space.gradient.data();
    if (args_.squares != nullptr) return latents_.kernels().squared_norm(gradient, d);
    latents_.adam(parameter, moments, j * d, gradient, d);
    return 0;
  }

  const UpdateArgs<Compute>& args_;
  const LatentRows<Compute> latents_;
};

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
  const int64_t tasks = (args.m + kLatentsPerTask - 1) / kLatentsPerTask;
  std::vector<Compute> sums(args.input_grad_parts == nullptr ? tasks * args.d : 0, 0);
  Compute* const partial = args.input_grad_parts == nullptr ? sums.data() : args.input_grad_parts;
  std::vector<UpdateSpace<Compute>> spaces(std::max(threads, 1));
  Lowest not_finite;
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    UpdateSpace<Compute>& space = spaces[worker];
    const int64_t first = task * kLatentsPerTask, end = std::min(args.m, first + kLatentsPerTask);
    for (int64_t j = first; j < end; ++j) update.run(j, partial + task * args.d, space);
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
