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

template <class Compute>
struct UpdateSpace {
  std::vector<Compute> values, value_grads, gradient;
  std::vector<uint32_t> panel;
};

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
    const int64_t* tokens = sorted_.row.data() + first;
    space.values.resize(count);
    space.value_grads.resize(count);
    space.gradient.resize(d);
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

    Compute* const gradient = space.gradient.data();
    Compute* const w_dec = args_.w_dec + j * d;
    rows_.weighted_sum(args_.residual, tokens, space.values.data(), count, d, gradient);
    if (slot >= 0) {
      const Compute* const more = args_.extra.w_dec + slot * d;
      update_.add_scaled(gradient, more, 1, d);
      const int64_t its_row = 0;
      Compute product;
      rows_.dots(more, w_dec, &its_row, 1, d, &product);
      along += product;
    }
    // w_dec . gradient = sum_i value_i (w_dec . residual_i) = sum_i value_i * value_grad_i, so the
    // part along a row of norm one costs no product of length d.
    if (args_.unit_norm && (count > 0 || slot >= 0)) update_.add_scaled(gradient, w_dec, -along, d);
    update_.adam(w_dec, args_.w_dec_moments.first + j * d, args_.w_dec_moments.second + j * d,
                 gradient, d, adam_);
    if (args_.unit_norm) {
      const Compute norm = std::sqrt(update_.squared_norm(w_dec, d));
      if (norm > 0) update_.multiply(w_dec, 1 / norm, d);
    }

    Compute* const w_enc = args_.w_enc + j * d;
    if (count > 0 || slot >= 0) update_.add_scaled(input_grad_sum, w_enc, bias_grad, d);
    rows_.weighted_sum(args_.inputs, tokens, space.value_grads.data(), count, d, gradient);
    if (slot >= 0) update_.add_scaled(gradient, args_.extra.w_enc + slot * d, 1, d);
    update_.adam(w_enc, args_.w_enc_moments.first + j * d, args_.w_enc_moments.second + j * d,
                 gradient, d, adam_);
    update_.adam(args_.b_enc + j, args_.b_enc_moments.first + j, args_.b_enc_moments.second + j,
                 &bias_grad, 1, adam_);
  }

 private:
  const UpdateArgs<Compute>& args_;
  const ByLatent& sorted_;
  const RowKernels<Compute>& rows_;
  const UpdateKernels<Compute>& update_;
  const AdamScalars<Compute> adam_;
  std::vector<int64_t> slots_;  // of each latent among the extra gradients, or -1
};

}  // namespace

template <class Compute>
void latent_update(const UpdateArgs<Compute>& args, Screen screen, const Panels* packed,
                   int threads) {
  check_indices(args.indices, args.n, args.k, args.m, threads);
  const ByLatent sorted = sort_by_latent(args.indices, args.n, args.k, args.m,
                                         [&](int64_t entry) { return args.values[entry] > 0; });
  const LatentUpdate<Compute> update(args, sorted);
  const Kernels& kernels = active_kernels();
  const ScreenPlan plan = plan_screen(kernels, screen);
  // A task is a fixed number of latents, the same for every panel width, so that the sum of the
  // inputs' gradients has one order only.
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
    // The rows were just written and are near: packing them again reads no memory.
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
    throw std::invalid_argument("the update made row " + std::to_string(not_finite.value()) +
                                " of w_enc NaN or infinite; the learning rate may be too high");
}

template void latent_update(const UpdateArgs<float>&, Screen, const Panels*, int);
template void latent_update(const UpdateArgs<double>&, Screen, const Panels*, int);

}  // namespace saefast
