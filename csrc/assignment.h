// The best one-to-one assignment on a sparse bipartite graph, with prices that prove it.
#pragma once
#include <cstdint>

namespace saefast {

// The graph, the start and the result of an assignment.
struct AssignmentArgs {
  // Row i has the arcs row_start[i] up to row_start[i + 1], of row_start [rows + 1]. Of several
  // arcs to one column the best counts.
  const int64_t* row_start;
  const int32_t* column;     // [arcs] column of each arc
  const double* similarity;  // [arcs] similarity of each arc
  int64_t rows, columns;
  double floor;          // value of an unmatched row
  bool warm;             // whether to start from column_price and partner
  double seconds;        // time limit
  int64_t* partner;      // [rows] column of each row, -1 for none
  double* row_price;     // [rows] at least `floor`
  double* column_price;  // [columns] at least 0
};

// Maximises the sum of the similarities of the pairs plus `floor` for every row without a partner,
// and writes partners and prices.
//
// Prices satisfy row_price[i] + column_price[j] >= similarity on every arc, so their sum is an
// upper bound of the value of every assignment. If the result is true, they are also equal to the
// similarity on matched arcs, and `floor` or 0 for rows or columns without a partner, up to the
// rounding of the last bits: no assignment is better. If it is false, `seconds` ran out, and both
// are the state that was reached. A finished result is deterministic; concurrent calls are safe on
// different results.
bool best_assignment(const AssignmentArgs& args);

}  // namespace saefast
