// The best one-to-one assignment on a sparse bipartite graph, with the prices that prove it.
#pragma once
#include <cstdint>

namespace saefast {

struct AssignmentArgs {
  // Arcs of row i are row_start[i] to row_start[i + 1]; of two arcs to one column the better
  // counts.
  const int64_t* row_start;
  const int32_t* column;
  const double* similarity;
  int64_t rows, columns;
  double floor;  // what an unmatched row counts
  bool warm;     // begin with column_price and partner instead of nothing
  double seconds;
  int64_t* partner;      // [rows], -1 for none
  double* row_price;     // [rows], at least `floor`
  double* column_price;  // [columns], at least 0
};

// Maximises the similarities of the pairs plus `floor` for every row without one. Prices satisfy
// row_price[i] + column_price[j] >= similarity on every arc, so their sum is at least any
// assignment's worth. If the result is true, they are also equal to it on matched arcs, and at
// `floor` and 0 where there is no partner, up to the rounding of the last bits: nothing is better.
// False: `seconds` ran out, and both sides are what was reached.
bool best_assignment(const AssignmentArgs& args);

}  // namespace saefast
