// One row's candidates. Those for the k largest are kept short by a floor that only ever rises;
// those above a threshold, which the columns' bias has in it, are all that rise above zero.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "encode_args.h"
#include "simd/kernels.h"

namespace saefast {

class Candidates {
 public:
  // Prepares for a new row; the memory of earlier rows is used again.
  template <class Storage>
  void reset(const EncodeArgs<Storage>& args, int64_t columns_at_once) {
    room_ = columns_at_once + 16;
    rises_ = args.threshold == nullptr;
    const size_t least = static_cast<size_t>((rises_ ? 2 * args.k : 0) + 64 + room_);
    if (scores_.size() < least) resize(least);
    k_ = args.k;
    count_ = 0;
    floor_ = rises_ ? -std::numeric_limits<float>::infinity() : 0.0f;
  }

  // Zero above a threshold; else at least k columns seen so far have a true score of it or more.
  float floor() const { return floor_; }
  int64_t count() const { return count_; }
  const float* scores() const { return scores_.data(); }
  const int32_t* ids() const { return ids_.data(); }

  // Takes the columns whose score can still beat the floor. `reach` bounds the error of every
  // score of this row, in this tile and all others. Where `shown` is given, it replaces the bias
  // in what is kept.
  void take(const SelectKernels& select, const float* scores, const float* bias, const float* shown,
            int64_t columns, float threshold, int32_t first, float reach) {
    const int64_t before = count_;
    count_ += select.filter(scores, bias, columns, threshold, first, scores_.data() + count_,
                            ids_.data() + count_);
    if (shown)
      for (int64_t c = before; c < count_; ++c)
        scores_[c] = scores[ids_[c] - first] + shown[ids_[c] - first];
    if (count_ + room_ <= static_cast<int64_t>(scores_.size())) return;
    if (rises_) tighten(select, reach);
    // Nothing is ever dropped to make room: the list grows instead, and grows again.
    if (2 * (count_ + room_) > static_cast<int64_t>(scores_.size())) resize(2 * scores_.size());
  }

 private:
  void tighten(const SelectKernels& select, float reach) {
    const float reached = select.reached_by(scores_.data(), count_, k_) - reach;
    if (reached > floor_) floor_ = reached;
    count_ = select.keep_from(scores_.data(), ids_.data(), count_, floor_ - reach);
  }
  void resize(size_t size) {
    scores_.resize(size);
    ids_.resize(size);
  }

  std::vector<float> scores_;
  std::vector<int32_t> ids_;
  int64_t k_ = 0, count_ = 0, room_ = 0;
  bool rises_ = true;
  float floor_ = 0.0f;
};

}  // namespace saefast
