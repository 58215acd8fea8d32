// The operands of topk_encode and threshold_encode.
#pragma once
#include <cstdint>

#include "storage.h"

namespace saefast {

// Operands and results of one encode; all tensors are contiguous.
template <class Storage>
struct EncodeArgs {
  const Storage* x;       // [n, d]
  const Storage* weight;  // [m, d]
  const Storage* bias;    // [m] or null
  const Storage* scale;   // [m] or null
  // [m] or null. Null: the k largest scores of a row are wanted. Otherwise scores above their
  // threshold count, and the k largest of them are wanted; fewer are followed by zeros.
  const compute_t<Storage>* threshold;
  int64_t n, d, m, k;
  Storage* values;   // [n, k]
  int64_t* indices;  // [n, k]
  int64_t* counts;   // [n] number of scores above their threshold; null without thresholds
  // false: values are screened scores, by which columns are selected as well
  bool rescore;
  // true ranks scores by their absolute value, -infinity last; not with a threshold
  bool absolute;
};

}  // namespace saefast
