// One row's candidates for the top k, kept short by a threshold that only ever rises.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.h"

namespace saefast {

class Candidates {
 public:
  // Prepares for a new row; the memory of earlier rows is used again.
  void reset(int64_t k, int64_t columns_at_once) {
    room_ = columns_at_once + 16;
    const size_t least = static_cast<size_t>(2 * k + 64 + room_);
    if (scores_.size() < least) resize(least);
    k_ = k;
    count_ = 0;
    floor_ = -std::numeric_limits<float>::infinity();
  }

  // At least k columns seen so far have a true score of `floor()` or more.
  float floor() const { return floor_; }
  int64_t count() const { return count_; }
  const float* scores() const { return scores_.data(); }
  const int32_t* ids() const { return ids_.data(); }

  // Takes the columns whose score can still beat the floor. `reach` bounds the error of every
  // score of this row, in this tile and all others.
  void take(const SelectKernels& select, const float* scores, const float* bias, int64_t columns,
            float threshold, int32_t first, float reach) {
    count_ += select.filter(scores, bias, columns, threshold, first, scores_.data() + count_,
                            ids_.data() + count_);
    if (count_ + room_ > static_cast<int64_t>(scores_.size())) tighten(select, reach);
  }

 private:
  void tighten(const SelectKernels& select, float reach) {
    const float reached = select.reached_by(scores_.data(), count_, k_) - reach;
    if (reached > floor_) floor_ = reached;
    count_ = select.keep_from(scores_.data(), ids_.data(), count_, floor_ - reach);
    // Ties and near-ties are never dropped: the list grows instead, and grows again.
    if (2 * (count_ + room_) > static_cast<int64_t>(scores_.size())) resize(2 * scores_.size());
  }
  void resize(size_t size) {
    scores_.resize(size);
    ids_.resize(size);
  }

  std::vector<float> scores_;
  std::vector<int32_t> ids_;
  int64_t k_ = 0, count_ = 0, room_ = 0;
  float floor_ = 0.0f;
};

}  // namespace saefast
