// One call of topk_encode or threshold_encode: its tensors and sizes.
#pragma once
#include <cstdint>

#include "storage.h"

namespace saefast {

template <class Storage>
struct EncodeArgs {
  const Storage* x;       // [n, d]
  const Storage* weight;  // [m, d]
  const Storage* bias;    // [m] or null
  const Storage* scale;   // [m] or null
  // [m] or null. Null asks for a row's k largest scores, else those above their threshold count,
  // and the k largest of them are wanted; fewer are followed by zeros.
  const compute_t<Storage>* threshold;
  int64_t n, d, m, k;
  Storage* values;   // [n, k]
  int64_t* indices;  // [n, k]
  int64_t* counts;   // [n] how many scores are above their threshold; null without
  // false keeps the screened scores as values and selects by them alone
  bool rescore;
};

}  // namespace saefast
