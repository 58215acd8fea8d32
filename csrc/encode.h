// The k largest of (x @ weight.T + bias) * scale per row, or those above a threshold, without the
// [n, m] matrix.
//
// A cheap product screens all columns; a bound on its error, proven in
// docs/concepts/exact_screening.md, leaves the columns that could be among those wanted, which are
// scored again in full precision. The result is that of the full-precision scores for any screen.
#pragma once
#include "encode_args.h"
#include "panels.h"

namespace saefast {

// Screens with the tiles of the active instruction set. `packed` may be null: then the weight is
// packed here. Throws std::invalid_argument where an operand is not finite.
template <class Storage>
void encode(const EncodeArgs<Storage>& args, Screen screen, const Panels* packed, int threads);

}  // namespace saefast
