// Passes over the columns of W_dec that one of several ranks has.
#include "decoder_columns.h"

#include <algorithm>
#include <vector>

#include "latent_rows.h"
#include "parallel.h"
#include "sparse_decode.h"

namespace saefast {

namespace {

template <class Compute>
class DecoderColumns {
 public:
  DecoderColumns(const UpdateArgs<Compute>& args, const ColumnsArgs<Compute>& columns,
                 ColumnsPass pass, const ByLatent& sorted)
      : args_(args), columns_(columns), pass_(pass), latents_(args, sorted) {}

  void run(int64_t j, UpdateSpace<Compute>& space) const {
    const int64_t d = args_.d_out;
    Compute* const row = args_.w_dec + j * d;
    const Compute along = latents_.load(j, space).along;
    Compute* const gradient = space.gradient.data();
    latents_.decoder_gradient(j, space, gradient);
    if (pass_ == ColumnsPass::along) {
      columns_.partial[j] = partial_dot(gradient, row);
      return;
    }
    if (args_.unit_norm && args_.remove_parallel) project(j, along, gradient);
    latents_.limit(gradient, d);
    if (pass_ == ColumnsPass::squares) {
      columns_.partial[j] = partial_dot(gradient, gradient);
    } else {
      latents_.adam(args_.w_dec, args_.w_dec_moments, j * d, gradient, d);
      columns_.partial[j] = partial_dot(row, row);
    }
  }

 private:
  void project(int64_t j, Compute along, Compute* gradient) const {
    if (columns_.along != nullptr) {
      latents_.project(j, columns_.along[j], gradient);
    } else if (latents_.learns(j)) {
      if (latents_.slot(j) >= 0) along += columns_.extra_along[latents_.slot(j)];
      latents_.project(j, along, gradient);
    }
  }

  Compute partial_dot(const Compute* a, const Compute* b) const {
    const int64_t only = 0;
    Compute product;
    latents_.kernels().partial_dots(a, b, &only, 1, columns_.width, args_.d_out, columns_.ranks,
                                    &product);
    return product;
  }

  const UpdateArgs<Compute>& args_;
  const ColumnsArgs<Compute>& columns_;
  const ColumnsPass pass_;
  const LatentRows<Compute> latents_;
};

}  // namespace

template <class Compute>
void decoder_columns(const UpdateArgs<Compute>& args, const ColumnsArgs<Compute>& columns,
                     ColumnsPass pass, int threads) {
  check_ranks<Compute>(columns.ranks);
  check_indices(args.indices, args.n, args.k, args.m, threads);
  check_groups(args);
  const ByLatent sorted = sort_by_latent(args.indices, args.n, args.k, args.m,
                                         [&](int64_t entry) { return args.values[entry] != 0; });
  const DecoderColumns<Compute> decoder(args, columns, pass, sorted);
  const int64_t tasks = (args.m + kLatentsPerTask - 1) / kLatentsPerTask;
  std::vector<UpdateSpace<Compute>> spaces(std::max(threads, 1));
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    const int64_t end = std::min(args.m, (task + 1) * kLatentsPerTask);
    for (int64_t j = task * kLatentsPerTask; j < end; ++j) decoder.run(j, spaces[worker]);
  });
}

template void decoder_columns(const UpdateArgs<float>&, const ColumnsArgs<float>&, ColumnsPass,
                              int);
template void decoder_columns(const UpdateArgs<double>&, const ColumnsArgs<double>&, ColumnsPass,
                              int);

}  // namespace saefast
