// The candidates of one row in the screen of an encode.
//
// For the k largest scores the list is kept short by a floor that only rises. With a threshold,
// which the bias of a column includes, the list holds all columns whose sum exceeds zero.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "encode_args.h"
#include "simd/kernels.h"

namespace saefast {

// List of columns of one row that may belong to the result; used by one thread at a time.
class Candidates {
 public:
  // Empties the list for a new row; the memory of earlier rows is reused.
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

  // Returns the floor: 0 with a threshold; otherwise at least k of the columns seen so far have an
  // exact score that reaches it.
  float floor() const { return floor_; }
  // The number of candidates, their screened scores and their columns, ascending.
  int64_t count() const { return count_; }
  const float* scores() const { return scores_.data(); }
  const int32_t* ids() const { return ids_.data(); }

  // Appends the columns first : first + columns of a tile whose score plus bias exceeds
  // `threshold`. `reach` bounds the error of every score of this row, in this tile and all others.
  // If `shown` is not null, it replaces the bias in the scores that are stored.
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
    // Nothing is ever dropped to make room: the list grows if tightening has freed too little.
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
