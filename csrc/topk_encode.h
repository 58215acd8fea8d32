// The k largest of (x @ weight.T + bias) * scale per row, without the [n, m] matrix.
//
// A cheap product screens all columns; a bound on its error, proven in CONTRIBUTING.md, says which
// columns could be among the k largest; those are scored again in full precision. The result is
// the top k of the full-precision scores, whatever screened.
#pragma once
#include <cstdint>
#include <memory>

#include "panels.h"

namespace saefast {

template <class Storage>
struct EncodeArgs {
  const Storage* x;       // [n, d]
  const Storage* weight;  // [m, d]
  const Storage* bias;    // [m] or null
  const Storage* scale;   // [m] or null
  int64_t n, d, m, k;
  Storage* values;   // [n, k]
  int64_t* indices;  // [n, k]
  // false keeps the screened scores as values and selects by them alone
  bool rescore;
};

// Screens with the tiles of the active instruction set. `packed` may be null: then the weight is
// packed here. Throws std::invalid_argument where x, weight, bias or scale is not finite.
template <class Storage>
void topk_encode(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads);

// Screens with tiles of scores that somebody else computes, in fp32 or with bf16 operands, and
// feeds in ascending order of columns.
class TileScreen {
 public:
  virtual ~TileScreen() = default;
  // scores [rows, columns], rows `stride` apart, for rows from `row` and columns from `column` on.
  virtual void feed(const float* scores, int64_t stride, int64_t row, int64_t rows, int64_t column,
                    int64_t columns, int threads) = 0;
  virtual void finish(int64_t row, int64_t rows, int threads) = 0;
};
template <class Storage>
std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<Storage>& args, Screen screen,
                                        int threads);

}  // namespace saefast
