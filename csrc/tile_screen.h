// The screen of an encode for tiles of scores that the caller multiplies.
#pragma once
#include <cstdint>
#include <memory>

#include "encode_args.h"
#include "panels.h"

namespace saefast {

// Screens tiles of scores for one encode: `feed` all columns of a row in ascending order, then
// `finish` it. Scores are float32 products of operands rounded as `Screen` says, summed in any
// order. The tensors of the encode must outlive the object. Calls for different rows may run
// concurrently; results have the same bits for every number of threads and division into tiles.
class TileScreen {
 public:
  virtual ~TileScreen() = default;
  // Screens scores [rows, columns], whose rows are `stride` apart, of the rows from `row` and the
  // columns from `column` on; `column` must be a multiple of 64.
  virtual void feed(const float* scores, int64_t stride, int64_t row, int64_t rows, int64_t column,
                    int64_t columns, int threads) = 0;
  // Scores the remaining candidates of the rows from `row` on exactly, and writes their results.
  virtual void finish(int64_t row, int64_t rows, int threads) = 0;
};
// Measures x and weight, and returns their screen; `screen` is float32 or bfloat16. Throws
// std::invalid_argument if an operand is not finite.
template <class Storage>
std::unique_ptr<TileScreen> tile_screen(const EncodeArgs<Storage>& args, Screen screen,
                                        int threads);

}  // namespace saefast
