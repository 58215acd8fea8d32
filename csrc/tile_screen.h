// The screen of an encode for tiles of scores that somebody else multiplies.
#pragma once
#include <cstdint>
#include <memory>

#include "encode_args.h"
#include "panels.h"

namespace saefast {

// Takes tiles in ascending order of columns, computed in fp32 from operands as `Screen` rounds
// them, in any order of summation.
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
