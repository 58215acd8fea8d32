// An auction that finds most pairs, followed by shortest augmenting paths that settle the others.
#include "assignment.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

namespace saefast {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int32_t kNone = -1;

// A time limit that reads the clock seldom.
class Deadline {
 public:
  explicit Deadline(double seconds) : seconds_(seconds) {}

  // Returns whether the time is over; reads the clock at every 256th call.
  bool passed() {
    if (!passed_ && calls_++ % 256 == 0)
      passed_ = std::chrono::duration<double>(Clock::now() - start_).count() >= seconds_;
    return passed_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start_ = Clock::now();
  const double seconds_;
  int64_t calls_ = 0;
  bool passed_ = false;
};

// The rows or the columns of the graph. A node without a partner may stay so only at the price
// `base`.
struct Side {
  std::vector<int64_t> start;
  std::vector<int32_t> neighbour;
  std::vector<double> similarity;
  std::vector<double> price;
  std::vector<int32_t> partner;
  double base;

  int32_t size() const { return static_cast<int32_t>(partner.size()); }
};

// Returns the step of a grid on which no sum of prices is ever rounded, if similarities are
// multiples of it: whether an arc is tight is then a question of equality, and no tolerance decides
// about pairs.
//
// Let `most` be the greatest of similarities, floor and first prices. A row's price lies between
// `floor` and `most`, so its partner's price is at most 2 most, and no sum here exceeds 8 most.
double grid_step(const AssignmentArgs& args) {
  double most = std::max(std::abs(args.floor), 1e-200);
  for (int64_t arc = 0; arc < args.row_start[args.rows]; ++arc)
    most = std::max(most, std::abs(args.similarity[arc]));
  for (int64_t j = 0; args.warm && j < args.columns; ++j)
    most = std::max(most, args.column_price[j]);
  return std::ldexp(1.0, std::ilogb(16 * most) - 52);
}

double on_grid(double value, double step) { return std::nearbyint(value / step) * step; }

Side make_rows(const AssignmentArgs& args, double step) {
  const int64_t arcs = args.row_start[args.rows];
  Side rows{{args.row_start, args.row_start + args.rows + 1},
            {args.column, args.column + arcs},
            std::vector<double>(arcs),
            std::vector<double>(args.rows, on_grid(args.floor, step)),
            std::vector<int32_t>(args.rows, kNone),
            on_grid(args.floor, step)};
  for (int64_t arc = 0; arc < arcs; ++arc)
    rows.similarity[arc] = on_grid(args.similarity[arc], step);
  return rows;
}

// Returns the same arcs by column, with ascending rows.
Side make_columns(const Side& rows, int64_t columns) {
  const size_t arcs = rows.neighbour.size();
  Side side{std::vector<int64_t>(columns + 1),
            std::vector<int32_t>(arcs),
            std::vector<double>(arcs),
            std::vector<double>(columns),
            std::vector<int32_t>(columns, kNone),
            0};
  for (const int32_t column : rows.neighbour) ++side.start[column + 1];
  for (int64_t j = 0; j < columns; ++j) side.start[j + 1] += side.start[j];
  std::vector<int64_t> next(side.start.begin(), side.start.end() - 1);
  for (int32_t row = 0; row < rows.size(); ++row)
    for (int64_t arc = rows.start[row]; arc < rows.start[row + 1]; ++arc) {
      const int64_t place = next[rows.neighbour[arc]]++;
      side.neighbour[place] = row;
      side.similarity[place] = rows.similarity[arc];
    }
  return side;
}

// The state of one assignment.
class Solver {
 public:
  Solver(const AssignmentArgs& args, double step)
      : step_(step),
        deadline_(args.seconds),
        rows_(make_rows(args, step)),
        columns_(make_columns(rows_, args.columns)) {
    if (args.warm) begin_with(args);
  }

  // Returns whether the assignment was finished in time.
  bool solve(bool warm) {
    if (!warm) auction_in_phases();
    release_loose_rows();
    auction(0);
    price_rows();
    return settle(rows_, columns_) && settle(columns_, rows_);
  }

  const Side& rows() const { return rows_; }
  const Side& columns() const { return columns_; }

 private:
  // A row's best column, its profit, and the profit of the second best choice.
  struct Best {
    int32_t column = kNone;
    double profit, second;
  };

  // Starts from given prices and pairs.
  void begin_with(const AssignmentArgs& args) {
    for (int32_t j = 0; j < columns_.size(); ++j)
      columns_.price[j] = std::max(0.0, on_grid(args.column_price[j], step_));
    for (int32_t i = 0; i < rows_.size(); ++i)
      if (args.partner[i] >= 0) pair(i, static_cast<int32_t>(args.partner[i]));
  }

  void pair(int32_t row, int32_t column) {
    rows_.partner[row] = column;
    columns_.partner[column] = row;
  }

  // Returns the column that a row profits most from, and its profit without that column.
  Best best_of(int32_t row) const {
    Best best{kNone, rows_.base, rows_.base};
    for (int64_t arc = rows_.start[row]; arc < rows_.start[row + 1]; ++arc) {
      const int32_t column = rows_.neighbour[arc];
      const double profit = rows_.similarity[arc] - columns_.price[column];
      if (profit > best.profit) {
        best.second = best.profit;
        best.profit = profit;
        best.column = column;
      } else if (profit > best.second) {
        best.second = profit;
      }
    }
    return best;
  }

  // Rows without a partner bid for columns; a bid may exceed the difference to the second best
  // choice by `eps`. If `eps` is 0, every pair stays tight, and rows that could only tie are left
  // to `settle`.
  void auction(double eps) {
    std::vector<int32_t> waiting;
    for (int32_t row = rows_.size(); row-- > 0;)
      if (rows_.partner[row] == kNone) waiting.push_back(row);
    const int64_t most_bids = kBidsPerRow * rows_.size();
    for (int64_t bids = 0; !waiting.empty() && bids < most_bids && !deadline_.passed(); ++bids) {
      const int32_t row = waiting.back();
      waiting.pop_back();
      const Best best = best_of(row);
      if (best.column == kNone) continue;
      const int32_t loser = columns_.partner[best.column];
      const double rise = best.profit - best.second + eps;
      if (loser != kNone && rise == 0) continue;
      if (loser != kNone) {
        columns_.price[best.column] += rise;
        rows_.partner[loser] = kNone;
        waiting.push_back(loser);
      }
      pair(row, best.column);
    }
  }

  // Runs auctions with decreasing `eps`, each from the prices of the previous one.
  void auction_in_phases() {
    double most = 0;
    for (const double similarity : rows_.similarity) most = std::max(most, std::abs(similarity));
    for (const double share : kPhases) {
      std::fill(rows_.partner.begin(), rows_.partner.end(), kNone);
      std::fill(columns_.partner.begin(), columns_.partner.end(), kNone);
      auction(on_grid(most * share, step_));
    }
  }

  // Separates pairs whose arc is not tight.
  void release_loose_rows() {
    for (int32_t row = 0; row < rows_.size(); ++row) {
      const int32_t column = rows_.partner[row];
      if (column == kNone) continue;
      const double profit = best_of(row).profit;
      bool tight = false;
      for (int64_t arc = rows_.start[row]; arc < rows_.start[row + 1]; ++arc)
        tight |= rows_.neighbour[arc] == column &&
                 rows_.similarity[arc] - columns_.price[column] == profit;
      if (tight) continue;
      rows_.partner[row] = kNone;
      columns_.partner[column] = kNone;
    }
  }

  // Sets every row's price to its best profit.
  void price_rows() {
    for (int32_t row = 0; row < rows_.size(); ++row) rows_.price[row] = best_of(row).profit;
  }

  // Gives every node of `own` a partner, or lowers its price to the base; false if the time is
  // over.
  bool settle(Side& own, Side& other) {
    distance_.assign(other.size(), kInfinity);
    via_.resize(other.size());
    for (int32_t node = 0; node < own.size(); ++node) {
      if (own.partner[node] != kNone || own.price[node] == own.base) continue;
      if (deadline_.passed()) return false;
      search(own, other, node);
    }
    return true;
  }

  // Runs Dijkstra's search, over the slack of arcs, for the cheapest way to settle `root`: to a
  // node of `other` without a partner, or to a node of `own` that may stay without one. All prices
  // stay feasible and all pairs tight.
  void search(Side& own, Side& other, int32_t root) {
    touched_.clear();
    reached_.clear();
    heap_ = {};
    double bound = kInfinity;  // cheapest way so far: to `goal`, or to releasing `single`
    int32_t goal = kNone, single = kNone;
    const auto scan = [&](int32_t node, double at) {
      const double level = at + own.price[node];
      if (level - own.base < bound) {
        bound = level - own.base;
        single = node;
        goal = kNone;
      }
      for (int64_t arc = own.start[node]; arc < own.start[node + 1]; ++arc) {
        const int32_t next = own.neighbour[arc];
        const double to = level + other.price[next] - own.similarity[arc];
        if (to >= distance_[next] || to >= bound) continue;
        if (distance_[next] == kInfinity) touched_.push_back(next);
        distance_[next] = to;
        via_[next] = node;
        if (other.partner[next] == kNone) {
          bound = to;
          goal = next;
        } else {
          heap_.emplace(to, next);
        }
      }
    };
    scan(root, 0);
    while (!heap_.empty()) {
      const auto [at, node] = heap_.top();
      if (at >= bound) break;
      heap_.pop();
      if (at > distance_[node]) continue;
      reached_.push_back(node);
      scan(other.partner[node], at);
    }
    own.price[root] -= bound;
    for (const int32_t node : reached_) {
      other.price[node] += bound - distance_[node];
      own.price[other.partner[node]] -= bound - distance_[node];
    }
    // On the way back each node takes the partner that the next node gives up.
    int32_t given = goal != kNone ? goal : std::exchange(own.partner[single], kNone);
    while (given != kNone) {
      const int32_t node = via_[given];
      other.partner[given] = node;
      given = std::exchange(own.partner[node], given);
    }
    for (const int32_t node : touched_) distance_[node] = kInfinity;
  }

  static constexpr int64_t kBidsPerRow = 200;
  static constexpr double kPhases[] = {0.1, 0.02, 4e-3, 8e-4, 1.6e-4};

  const double step_;
  Deadline deadline_;
  Side rows_, columns_;

  using Place = std::pair<double, int32_t>;
  std::priority_queue<Place, std::vector<Place>, std::greater<Place>> heap_;
  std::vector<double> distance_;
  std::vector<int32_t> via_, touched_, reached_;
};

}  // namespace

bool best_assignment(const AssignmentArgs& args) {
  Solver solver(args, grid_step(args));
  const bool finished = solver.solve(args.warm);
  std::copy(solver.rows().partner.begin(), solver.rows().partner.end(), args.partner);
  std::copy(solver.columns().price.begin(), solver.columns().price.end(), args.column_price);
  // Row prices follow from the similarities themselves, which the grid had rounded.
  for (int64_t row = 0; row < args.rows; ++row) {
    double price = args.floor;
    for (int64_t arc = args.row_start[row]; arc < args.row_start[row + 1]; ++arc)
      price = std::max(price, args.similarity[arc] - args.column_price[args.column[arc]]);
    args.row_price[row] = price;
  }
  return finished;
}

}  // namespace saefast
