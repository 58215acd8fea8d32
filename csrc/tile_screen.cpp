// The screen of an encode whose product the caller computes.
#include "tile_screen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bounds.h"
#include "candidates.h"
#include "finite.h"
#include "isa.h"
#include "parallel.h"
#include "rescore.h"

namespace saefast {

namespace {

// Measures the rounding of both operands as `Screen` says, without storing rounded rows.
// Throws std::invalid_argument if `count` places from `first` on are not among `size` places.
void check_range(const char* name, int64_t first, const char* names, int64_t count, int64_t size) {
  if (first >= 0 && count >= 0 && first <= size && count <= size - first) return;
  throw std::invalid_argument(std::string(name) + " and " + names + " must be within the " +
                              std::to_string(size) + " " + names + " of the encode, got " + name +
                              "=" + std::to_string(first) + " and " + names + "=" +
                              std::to_string(count));
}

template <class Storage>
class TileScreenOf final : public TileScreen {
 public:
  TileScreenOf(const EncodeArgs<Storage>& args, Screen screen, int threads)
      : args_(args),
        kernels_(active_kernels()),
        select_(select_kernels_of(kernels_, args.absolute)),
        norm_(args.m),
        lost_(args.m),
        rows_(args.n),
        lists_(args.n),
        reach_of_all_(args.n) {
    const Packing packing = screen == Screen::float32 ? Packing::float32 : Packing::bf16_as_float;
    std::vector<std::vector<uint32_t>> scratch(std::max(threads, 1), std::vector<uint32_t>(args.d));
    Lowest bad_weight, bad_x;
    const auto measure = [&](const Storage* row, double scale, int worker, double* squared,
                             double* lost) {
      pack_row_of<Storage>(kernels_)(row, args_.d, scale, packing, scratch[worker].data(), squared,
                                     lost);
      return std::isfinite(*squared) || all_finite(row, args_.d);
    };
    parallel_for(args.m, threads, [&](int64_t j, int worker) {
      double squared, lost;
      if (!measure(args_.weight + j * args_.d, args_.scale ? widen(args_.scale[j]) : 1.0, worker,
                   &squared, &lost))
        bad_weight.report(j);
      norm_[j] = rounded_up(std::sqrt(squared));
      lost_[j] = std::isfinite(lost) ? rounded_up(std::sqrt(lost))
                                     : std::numeric_limits<float>::infinity();
    });
    if (bad_weight.any()) throw_not_finite("weight", bad_weight.value());
    columns_ = describe_columns(args_, kGroup, norm_.data(), lost_.data());
    parallel_for(args.n, threads, [&](int64_t i, int worker) {
      double squared, lost;
      if (!measure(args_.x + i * args_.d, 1.0, worker, &squared, &lost)) bad_x.report(i);
      rows_[i] = describe_row(args_, columns_, squared, lost);
      reach_of_all_[i] = rows_[i].bound.reach(columns_.most_of_all);
      lists_[i].reset(args_, kGroup);
    });
    if (bad_x.any()) throw_not_finite("x", bad_x.value());
  }

  void feed(const float* scores, int64_t stride, int64_t row, int64_t rows, int64_t column,
            int64_t columns, int threads) override {
    check_range("row", row, "rows", rows, args_.n);
    check_range("column", column, "columns", columns, args_.m);
    if (column % kGroup != 0)
      throw std::invalid_argument("column must be a multiple of " + std::to_string(kGroup) +
                                  ", got " + std::to_string(column));
    parallel_for(rows, threads, [&](int64_t r, int) {
      const ScreenedRow& screened = rows_[row + r];
      Candidates& list = lists_[row + r];
      if (!screened.screened) return;
      for (int64_t c = 0; c < columns; c += kGroup) {
        const int64_t j = column + c;
        list.take(select_, scores + r * stride + c, columns_.bias.data() + j,
                  columns_.shown_from(j), std::min(kGroup, columns - c),
                  list.floor() - screened.bound.reach(columns_.most[j / kGroup]),
                  static_cast<int32_t>(j), reach_of_all_[row + r]);
      }
    });
  }

  void finish(int64_t row, int64_t rows, int threads) override {
    check_range("row", row, "rows", rows, args_.n);
    std::vector<FinishSpace<Storage>> spaces(std::max(threads, 1));
    parallel_for(rows, threads, [&](int64_t r, int worker) {
      const Candidates* list = &lists_[row + r];
      finish_row(kernels_, args_, columns_, row + r, rows_[row + r], &list, 1, spaces[worker]);
      lists_[row + r] = Candidates();
    });
  }

 private:
  static constexpr int64_t kGroup = 64;  // columns of a group; tiles start at multiples of it

  const EncodeArgs<Storage> args_;
  const Kernels& kernels_;
  const SelectKernels& select_;
  std::vector<float> norm_, lost_;
  std::vector<ScreenedRow> rows_;
  std::vector<Candidates> lists_;
  std::vector<float> reach_of_all_;
  Columns columns_;
};

}  // namespace

template <class Storage>
std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<Storage>& args, Screen screen,
                                        int threads) {
  check_columns(args);
  return std::make_unique<TileScreenOf<Storage>>(args, screen, threads);
}

template std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<float>&, Screen, int);
template std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<double>&, Screen, int);
template std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<bf16>&, Screen, int);

}  // namespace saefast
