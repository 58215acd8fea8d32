// The encode with the tiles of the active instruction set.
#include "encode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "bounds.h"
#include "buffer.h"
#include "candidates.h"
#include "finite.h"
#include "isa.h"
#include "parallel.h"
#include "rescore.h"

namespace saefast {

namespace {

// One encode: packs the rows of x in blocks, multiplies each block by all panels, and finishes it.
template <class Storage>
class NativeScreen {
 public:
  NativeScreen(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads)
      : args_(args),
        kernels_(active_kernels()),
        plan_(plan_screen(kernels_, screen)),
        tile_(args.absolute ? plan_.tile.absolute_tile : plan_.tile.tile),
        select_(select_kernels_of(kernels_, args.absolute)),
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
    // Enough rows that a panel is used often while it is in a cache, few enough to stay in it as
    // well.
    constexpr int64_t kRowsAtOnce = 96;
    const int64_t tile_rows = plan_.tile.rows;
    const int64_t share = (args_.n + threads_ - 1) / threads_;
    const int64_t block = (std::min(kRowsAtOnce, share) + tile_rows - 1) / tile_rows * tile_rows;
    const int64_t blocks = (args_.n + block - 1) / block;
    const int64_t panels = panel_count(plan_, args_.m);
    // With few rows the columns are divided as well, and a row has a list for each part.
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
    if (not_finite_.any()) throw_not_finite("x", not_finite_.value());
  }

 private:
  // Memory that a worker reuses for every block of rows.
  struct Space {
    std::vector<uint32_t> units, packed;  // rows, row-major and in tiles
    std::vector<ScreenedRow> rows;
    std::vector<Candidates> lists;
    std::vector<float> thresholds, reach_of_all, scores;
    FinishSpace<Storage> finish;
  };

  // Packs up to `block` rows from `first` on and empties their lists; returns their number.
  int64_t begin(int64_t first, int64_t block, Space& space) {
    const int64_t rows = std::min(block, args_.n - first), units = plan_.units_of(args_.d);
    const int64_t tile_rows = plan_.tile.rows;
    space.units.resize(block * units);
    space.packed.resize(block * units);
    space.rows.assign(rows, {});
    space.reach_of_all.assign(block, 0.0f);
    space.thresholds.assign(block, std::numeric_limits<float>::infinity());
    space.scores.resize(tile_rows * plan_.tile.columns);
    for (int64_t r = 0; r < rows; ++r) {
      double squared, lost;
      const Storage* x = args_.x + (first + r) * args_.d;
      pack_row_of<Storage>(kernels_)(x, args_.d, 1.0, plan_.packing, space.units.data() + r * units,
                                     &squared, &lost);
      if (!std::isfinite(squared) && !all_finite(x, args_.d)) not_finite_.report(first + r);
      space.rows[r] = describe_row(args_, columns_, squared, lost);
      space.reach_of_all[r] = space.rows[r].bound.reach(columns_.most_of_all);
    }
    for (int64_t r = 0; r < rows; r += tile_rows)
      kernels_.pack.interleave(space.units.data() + r * units, std::min(tile_rows, rows - r), units,
                               tile_rows, space.packed.data() + r * units);
    prepare(space, space.lists);
    return rows;
  }

  // Empties the list of every row of the block.
  void prepare(const Space& space, std::vector<Candidates>& lists) {
    lists.resize(std::max(lists.size(), space.rows.size()));
    for (size_t r = 0; r < space.rows.size(); ++r) lists[r].reset(args_, plan_.tile.columns);
  }

  // Multiplies the rows of a block by a range of panels, and appends candidates to `lists`.
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
          space.thresholds[r] = lists[r].floor() - space.rows[r].bound.reach(most);
      for (int64_t r = 0; r < rows; r += tile_rows) {
        uint32_t hits = tile_(space.packed.data() + r * units, w, units, rows - r, bias,
                              space.thresholds.data() + r, space.scores.data());
        for (; hits != 0; hits &= hits - 1) {
          const int64_t in_tile = __builtin_ctz(hits), row = r + in_tile;
          lists[row].take(select_, space.scores.data() + in_tile * width, bias,
                          columns_.shown_from(panel * width), width, space.thresholds[row],
                          static_cast<int32_t>(panel * width), space.reach_of_all[row]);
        }
      }
    }
  }

  // Encodes one block of rows, with the panels divided between `parts` tasks.
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
  const ScreenKernels::Tile tile_;
  const SelectKernels& select_;
  const int threads_;
  std::optional<Buffer> units_;
  std::vector<float> norm_, lost_;
  Panels panels_{};
  Columns columns_;
  Lowest not_finite_;
};

}  // namespace

template <class Storage>
void encode(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads) {
  check_columns(args);
  if (args.n == 0) return;
  NativeScreen<Storage>(args, screen, packed, threads).run();
}

template void encode(const EncodeArgs<float>&, Screen, const Panels*, int);
template void encode(const EncodeArgs<double>&, Screen, const Panels*, int);
template void encode(const EncodeArgs<bf16>&, Screen, const Panels*, int);

}  // namespace saefast
