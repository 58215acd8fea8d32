#include "topk_encode.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "candidates.h"
#include "isa.h"
#include "parallel.h"

namespace saefast {

namespace {

constexpr double kRoundoff = 1.0 / (1 << 24);  // of one fp32 operation
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Beyond this fp32 sums may overflow and bounds mean nothing: rows are then scored in full.
constexpr double kScreenable = 1e37;

template <class T>
void check_vector(const T* values, int64_t m, const char* name, bool masking_allowed) {
  if (values == nullptr) return;
  for (int64_t j = 0; j < m; ++j) {
    const double value = widen(values[j]);
    if (std::isfinite(value) || (masking_allowed && value == -INFINITY)) continue;
    throw std::invalid_argument(std::string(name) + " must be finite" +
                                (masking_allowed ? " or -infinity" : "") + ", but entry " +
                                std::to_string(j) + " is " + std::to_string(value));
  }
}

// What the screen knows of the columns, in groups of `width`.
struct Columns {
  int64_t width;
  const float* norm;         // [m]
  const float* lost;         // [m]
  std::vector<float> bias;   // [groups * width] bias * scale, -infinity beyond m
  std::vector<float> slack;  // [m] what the bias adds to the error
  struct Most {
    float norm = 0.0f, lost = 0.0f, slack = 0.0f;
  };
  std::vector<Most> most;  // [groups]
  Most most_of_all;
  double largest_bias = 0.0;
};

template <class Storage>
Columns describe_columns(const EncodeArgs<Storage>& args, int64_t width, const float* norm,
                         const float* lost) {
  const int64_t groups = (args.m + width - 1) / width;
  Columns columns{width,
                  norm,
                  lost,
                  std::vector<float>(groups * width, -kInfinity),
                  std::vector<float>(args.m, 0.0f),
                  std::vector<Columns::Most>(groups),
                  {},
                  0.0};
  for (int64_t j = 0; j < args.m; ++j) {
    const double scale = args.scale ? widen(args.scale[j]) : 1.0;
    const double bias = args.bias ? widen(args.bias[j]) : 0.0;
    // A latent masked by -infinity stays masked, whatever the sign of its scale.
    const double scaled = bias == -INFINITY ? bias : bias * scale;
    columns.bias[j] = static_cast<float>(scaled);
    if (std::isfinite(scaled)) {
      columns.largest_bias = std::max(columns.largest_bias, std::fabs(scaled));
      if (args.rescore) columns.slack[j] = rounded_up(16 * kRoundoff * std::fabs(scaled));
    }
    Columns::Most& most = columns.most[j / width];
    most.norm = std::max(most.norm, norm[j]);
    most.lost = std::max(most.lost, lost[j]);
    most.slack = std::max(most.slack, columns.slack[j]);
  }
  for (const Columns::Most& most : columns.most) {
    columns.most_of_all.norm = std::max(columns.most_of_all.norm, most.norm);
    columns.most_of_all.lost = std::max(columns.most_of_all.lost, most.lost);
    columns.most_of_all.slack = std::max(columns.most_of_all.slack, most.slack);
  }
  return columns;
}

float reach(const RowBound& bound, const Columns::Most& most) {
  return bound.reach(most.norm, most.lost, most.slack);
}

// One row of x as the screen sees it.
struct ScreenedRow {
  RowBound bound;
  bool screened = false;  // false: scored in full, because it is not finite or could overflow
};

template <class Storage>
ScreenedRow describe_row(const EncodeArgs<Storage>& args, const Columns& columns, double squared,
                         double lost_squared) {
  const double norm = std::sqrt(squared), lost = std::sqrt(lost_squared);
  const double largest = norm * columns.most_of_all.norm + columns.largest_bias;
  ScreenedRow row;
  row.screened =
      std::isfinite(lost) && largest < kScreenable && columns.most_of_all.lost < kInfinity;
  if (!row.screened || !args.rescore) return row;
  // Two sums of d products, the screened and the exact one, and a few single operations.
  const double rounding = 2 * static_cast<double>(args.d + 16) * kRoundoff;
  row.bound.by_norm = rounded_up(lost + norm * rounding);
  row.bound.by_lost = rounded_up(norm + lost);
  // Products below the smallest normal float may count as zero. Not so where x is zero: there
  // scores are exact, and ties need no second look.
  if (norm > 0.0) row.bound.underflow = static_cast<float>(args.d + 8) * FLT_MIN;
  return row;
}

template <class Score>
struct Scored {
  Score value;
  int64_t id;
  bool operator<(const Scored& other) const {  // comes first in the result
    return value > other.value || (value == other.value && id < other.id);
  }
};

// Memory that one worker uses for row after row.
template <class Storage>
struct FinishSpace {
  std::vector<int64_t> ids;
  std::vector<float> screened, lower;
  std::vector<compute_t<Storage>> products;
  std::vector<Scored<compute_t<Storage>>> scored;
};

template <class Storage>
void write_best(const EncodeArgs<Storage>& args, int64_t row, FinishSpace<Storage>& space) {
  auto& scored = space.scored;
  std::partial_sort(scored.begin(), scored.begin() + args.k, scored.end());
  for (int64_t c = 0; c < args.k; ++c) {
    assign(args.values[row * args.k + c], scored[c].value);
    args.indices[row * args.k + c] = scored[c].id;
  }
}

// Scores `space.ids` in full precision.
template <class Storage>
void score_exactly(const Kernels& kernels, const EncodeArgs<Storage>& args, int64_t row,
                   FinishSpace<Storage>& space) {
  using Compute = compute_t<Storage>;
  const int64_t count = static_cast<int64_t>(space.ids.size());
  space.products.resize(count);
  row_kernels_of<Storage>(kernels).dots(args.x + row * args.d, args.weight, space.ids.data(), count,
                                        args.d, space.products.data());
  space.scored.resize(count);
  for (int64_t c = 0; c < count; ++c) {
    const int64_t j = space.ids[c];
    Compute value = space.products[c];
    if (args.bias && widen(args.bias[j]) == -INFINITY) {
      value = -std::numeric_limits<Compute>::infinity();
    } else {
      if (args.bias) value += widen(args.bias[j]);
      if (args.scale) value *= widen(args.scale[j]);
    }
    space.scored[c] = {value, j};
  }
}

// The row's k largest from what the screen let through, in `lists` by ascending column.
template <class Storage>
void finish_row(const Kernels& kernels, const EncodeArgs<Storage>& args, const Columns& columns,
                int64_t row, const ScreenedRow& screened, const Candidates* const* lists,
                int64_t list_count, FinishSpace<Storage>& space) {
  space.ids.clear();
  space.screened.clear();
  if (screened.screened) {
    for (int64_t l = 0; l < list_count; ++l) {
      const Candidates& list = *lists[l];
      space.ids.insert(space.ids.end(), list.ids(), list.ids() + list.count());
      space.screened.insert(space.screened.end(), list.scores(), list.scores() + list.count());
    }
  }
  const int64_t count = static_cast<int64_t>(space.ids.size());
  if (count < args.k) {  // not screened, or fewer than k columns are above -infinity
    space.ids.resize(args.m);
    for (int64_t j = 0; j < args.m; ++j) space.ids[j] = j;
    score_exactly(kernels, args, row, space);
    return write_best(args, row, space);
  }
  if (!args.rescore) {
    space.scored.resize(count);
    for (int64_t c = 0; c < count; ++c) space.scored[c] = {space.screened[c], space.ids[c]};
    return write_best(args, row, space);
  }
  // With each column's own bound, rather than the largest, most candidates fall away.
  const auto error = [&](int64_t c) {
    const int64_t j = space.ids[c];
    return screened.bound.reach(columns.norm[j], columns.lost[j], columns.slack[j]);
  };
  space.lower.resize(count);
  for (int64_t c = 0; c < count; ++c) space.lower[c] = space.screened[c] - error(c);
  std::nth_element(space.lower.begin(), space.lower.begin() + (args.k - 1), space.lower.end(),
                   std::greater<float>());
  const float floor = space.lower[args.k - 1];
  int64_t kept = 0;
  for (int64_t c = 0; c < count; ++c)
    if (space.screened[c] + error(c) >= floor) space.ids[kept++] = space.ids[c];
  space.ids.resize(kept);
  score_exactly(kernels, args, row, space);
  write_best(args, row, space);
}

[[noreturn]] void throw_not_finite(int64_t row) {
  throw std::invalid_argument("x must be finite, but row " + std::to_string(row) +
                              " holds NaN or infinity");
}

template <class Storage>
class NativeScreen {
 public:
  NativeScreen(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads)
      : args_(args),
        kernels_(active_kernels()),
        plan_(plan_screen(kernels_, screen)),
        threads_(std::max(threads, 1)) {
    if (packed != nullptr) {
      panels_ = *packed;
    } else {
      units_.emplace(sizeof(uint32_t) * panel_units(plan_, args.d, args.m));
      norm_.resize(args.m);
      lost_.resize(args.m);
      panels_ = {static_cast<uint32_t*>(units_->data()), norm_.data(), lost_.data()};
      pack_weight(kernels_, screen, args.weight, args.scale, args.d, args.m, panels_, threads_);
    }
    columns_ = describe_columns(args, plan_.tile.columns, panels_.norm, panels_.lost);
  }

  void run() {
    // Enough rows that a panel is used often while it is near, few enough to stay near as well.
    constexpr int64_t kRowsAtOnce = 96;
    const int64_t tile_rows = plan_.tile.rows;
    const int64_t share = (args_.n + threads_ - 1) / threads_;
    const int64_t block = (std::min(kRowsAtOnce, share) + tile_rows - 1) / tile_rows * tile_rows;
    const int64_t blocks = (args_.n + block - 1) / block;
    const int64_t panels = panel_count(plan_, args_.m);
    // Few rows: the columns are divided instead, and a row has a list for each part.
    const int64_t parts =
        blocks >= threads_ ? 1 : std::min<int64_t>(panels, (2 * threads_ + blocks - 1) / blocks);
    std::vector<Space> spaces(threads_);
    if (parts == 1) {
      parallel_for(blocks, threads_, [&](int64_t b, int worker) {
        Space& space = spaces[worker];
        const int64_t rows = begin(b * block, block, space);
        screen(space, 0, panels, space.lists);
        for (int64_t r = 0; r < rows; ++r) {
          const Candidates* list = &space.lists[r];
          finish_row(kernels_, args_, columns_, b * block + r, space.rows[r], &list, 1,
                     space.finish);
        }
      });
    } else {
      for (int64_t b = 0; b < blocks; ++b) run_in_parts(b * block, block, parts, panels, spaces);
    }
    if (not_finite_.any()) throw_not_finite(not_finite_.value());
  }

 private:
  struct Space {
    std::vector<uint32_t> units, packed;  // row-major and in tiles
    std::vector<ScreenedRow> rows;
    std::vector<Candidates> lists;
    std::vector<float> thresholds, reach_of_all, scores;
    FinishSpace<Storage> finish;
  };

  // Packs the rows from `first` on; returns how many there are.
  int64_t begin(int64_t first, int64_t block, Space& space) {
    const int64_t rows = std::min(block, args_.n - first), units = plan_.units_of(args_.d);
    const int64_t tile_rows = plan_.tile.rows;
    space.units.resize(block * units);
    space.packed.resize(block * units);
    space.rows.assign(block, {});
    space.reach_of_all.assign(block, 0.0f);
    space.thresholds.assign(block, kInfinity);
    space.scores.resize(tile_rows * plan_.tile.columns);
    for (int64_t r = 0; r < rows; ++r) {
      double squared, lost;
      const Storage* x = args_.x + (first + r) * args_.d;
      pack_row_of<Storage>(kernels_)(x, args_.d, 1.0, plan_.packing, space.units.data() + r * units,
                                     &squared, &lost);
      if (!std::isfinite(squared) && !all_finite(x, args_.d)) not_finite_.report(first + r);
      space.rows[r] = describe_row(args_, columns_, squared, lost);
      space.reach_of_all[r] = reach(space.rows[r].bound, columns_.most_of_all);
    }
    for (int64_t r = 0; r < rows; r += tile_rows)
      kernels_.pack.interleave(space.units.data() + r * units, std::min(tile_rows, rows - r), units,
                               tile_rows, space.packed.data() + r * units);
    prepare(space, space.lists);
    return rows;
  }

  void prepare(const Space& space, std::vector<Candidates>& lists) {
    lists.resize(std::max(lists.size(), space.rows.size()));
    for (size_t r = 0; r < space.rows.size(); ++r) lists[r].reset(args_.k, plan_.tile.columns);
  }

  void screen(Space& space, int64_t first_panel, int64_t end_panel,
              std::vector<Candidates>& lists) {
    const int64_t width = plan_.tile.columns, tile_rows = plan_.tile.rows;
    const int64_t units = plan_.units_of(args_.d), rows = static_cast<int64_t>(space.rows.size());
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const Columns::Most& most = columns_.most[panel];
      const float* bias = columns_.bias.data() + panel * width;
      const uint32_t* w = panels_.units + panel * units * width;
      for (int64_t r = 0; r < rows; ++r)
        if (space.rows[r].screened)
          space.thresholds[r] = lists[r].floor() - reach(space.rows[r].bound, most);
      for (int64_t r = 0; r < rows; r += tile_rows) {
        uint32_t hits = plan_.tile.tile(space.packed.data() + r * units, w, units, bias,
                                        space.thresholds.data() + r, space.scores.data());
        for (; hits != 0; hits &= hits - 1) {
          const int64_t in_tile = __builtin_ctz(hits), row = r + in_tile;
          lists[row].take(kernels_.select, space.scores.data() + in_tile * width, bias, width,
                          space.thresholds[row], static_cast<int32_t>(panel * width),
                          space.reach_of_all[row]);
        }
      }
    }
  }

  void run_in_parts(int64_t first, int64_t block, int64_t parts, int64_t panels,
                    std::vector<Space>& spaces) {
    Space& shared = spaces[0];
    const int64_t rows = begin(first, block, shared);
    std::vector<std::vector<Candidates>> lists(parts);
    std::vector<Space> own(parts);
    parallel_for(parts, threads_, [&](int64_t part, int) {
      own[part].rows = shared.rows;
      own[part].packed = shared.packed;
      own[part].reach_of_all = shared.reach_of_all;
      own[part].thresholds = shared.thresholds;
      own[part].scores.resize(shared.scores.size());
      prepare(shared, lists[part]);
      screen(own[part], panels * part / parts, panels * (part + 1) / parts, lists[part]);
    });
    parallel_for(rows, threads_, [&](int64_t r, int worker) {
      std::vector<const Candidates*> of_row(parts);
      for (int64_t part = 0; part < parts; ++part) of_row[part] = &lists[part][r];
      finish_row(kernels_, args_, columns_, first + r, shared.rows[r], of_row.data(), parts,
                 spaces[worker].finish);
    });
  }

  const EncodeArgs<Storage>& args_;
  const Kernels& kernels_;
  const ScreenPlan plan_;
  const int threads_;
  std::optional<Buffer> units_;
  std::vector<float> norm_, lost_;
  Panels panels_{};
  Columns columns_;
  Lowest not_finite_;
};

template <class Storage>
class TileScreenOf final : public TileScreen {
 public:
  TileScreenOf(const EncodeArgs<Storage>& args, Screen screen, int threads)
      : args_(args),
        kernels_(active_kernels()),
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
      lost_[j] = std::isfinite(lost) ? rounded_up(std::sqrt(lost)) : kInfinity;
    });
    if (bad_weight.any())
      throw std::invalid_argument("weight must be finite, but row " +
                                  std::to_string(bad_weight.value()) + " holds NaN or infinity");
    columns_ = describe_columns(args_, kGroup, norm_.data(), lost_.data());
    parallel_for(args.n, threads, [&](int64_t i, int worker) {
      double squared, lost;
      if (!measure(args_.x + i * args_.d, 1.0, worker, &squared, &lost)) bad_x.report(i);
      rows_[i] = describe_row(args_, columns_, squared, lost);
      reach_of_all_[i] = reach(rows_[i].bound, columns_.most_of_all);
      lists_[i].reset(args_.k, kGroup);
    });
    if (bad_x.any()) throw_not_finite(bad_x.value());
  }

  void feed(const float* scores, int64_t stride, int64_t row, int64_t rows, int64_t column,
            int64_t columns, int threads) override {
    parallel_for(rows, threads, [&](int64_t r, int) {
      const ScreenedRow& screened = rows_[row + r];
      Candidates& list = lists_[row + r];
      if (!screened.screened) return;
      for (int64_t c = 0; c < columns; c += kGroup) {
        const int64_t j = column + c;
        list.take(kernels_.select, scores + r * stride + c, columns_.bias.data() + j,
                  std::min(kGroup, columns - c),
                  list.floor() - reach(screened.bound, columns_.most[j / kGroup]),
                  static_cast<int32_t>(j), reach_of_all_[row + r]);
      }
    });
  }

  void finish(int64_t row, int64_t rows, int threads) override {
    std::vector<FinishSpace<Storage>> spaces(std::max(threads, 1));
    parallel_for(rows, threads, [&](int64_t r, int worker) {
      const Candidates* list = &lists_[row + r];
      finish_row(kernels_, args_, columns_, row + r, rows_[row + r], &list, 1, spaces[worker]);
      lists_[row + r] = Candidates();
    });
  }

 private:
  static constexpr int64_t kGroup = 64;  // tiles start at multiples of it

  const EncodeArgs<Storage> args_;
  const Kernels& kernels_;
  std::vector<float> norm_, lost_;
  std::vector<ScreenedRow> rows_;
  std::vector<Candidates> lists_;
  std::vector<float> reach_of_all_;
  Columns columns_;
};

template <class Storage>
void check_columns(const EncodeArgs<Storage>& args) {
  check_vector(args.bias, args.m, "bias", true);
  check_vector(args.scale, args.m, "scale", false);
}

}  // namespace

template <class Storage>
void topk_encode(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed,
                 int threads) {
  check_columns(args);
  if (args.n == 0) return;
  NativeScreen<Storage>(args, screen, packed, threads).run();
}

template <class Storage>
std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<Storage>& args, Screen screen,
                                        int threads) {
  check_columns(args);
  return std::make_unique<TileScreenOf<Storage>>(args, screen, threads);
}

#define SAEFAST_ENCODE(Storage)                                                      \
  template void topk_encode(const EncodeArgs<Storage>&, Screen, const Panels*, int); \
  template std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<Storage>&, Screen, int);
SAEFAST_ENCODE(float)
SAEFAST_ENCODE(double)
SAEFAST_ENCODE(bf16)
#undef SAEFAST_ENCODE

}  // namespace saefast
