// One call of topk_encode: its tensors and sizes.
#pragma once
#include <cstdint>

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

}  // namespace saefast
