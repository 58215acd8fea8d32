// The k largest of (x @ weight.T + bias) * scale per row, by value or by absolute value, or those
// above a threshold, without the [n, m] matrix.
//
// A cheap product screens all columns. A bound on its error, proven in
// docs/concepts/exact_screening.md, leaves only columns that may belong to the result; these are
// scored again in full precision. The result agrees with full-precision scores, regardless of
// the screen.
#pragma once
#include "encode_args.h"
#include "panels.h"

namespace saefast {

// Encodes args.x with the tiles of the active instruction set, and writes args.values, args.indices
// and, with a threshold, args.counts.
//
// `packed` is the weight times scale packed for `screen` by `pack_weight` at the active level;
// null: it is packed here. If args.rescore is set, results have the same bits for every screen,
// level and number of threads; otherwise values come from the screen, and depend on its level.
// Throws std::invalid_argument if x, bias, scale, threshold or a weight that is packed here is not
// finite; outputs are then undefined. Concurrent calls are safe on different outputs.
template <class Storage>
void encode(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads);

}  // namespace saefast
