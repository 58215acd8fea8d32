// The inner loops that exist once per instruction set, as a table of function pointers.
//
// Every level computes the same bits: sums run over a fixed number of virtual lanes (kLanes), are
// combined in a fixed tree, and use fused multiply-add. `ScreenKernels` are the exception: their
// sums may run in any order, since their results are used with an error bound. All functions are
// safe to call concurrently on different outputs.
#pragma once
#include <cstdint>

#include "../storage.h"

namespace saefast {

// Numbers of an Adam step.
template <class Compute>
struct AdamScalars {
  Compute step_size;  // lr / (1 - beta1^t)
  Compute beta2;
  Compute one_minus_beta1;
  Compute one_minus_beta2;
  Compute inverse_root_correction;  // 1 / sqrt(1 - beta2^t)
  Compute eps;
};

// Products and sums of rows of a matrix [., d].
template <class Storage>
struct RowKernels {
  using Compute = compute_t<Storage>;
  // out[c] = row . matrix[ids[c]] for c < count. Every product is summed in the same order,
  // regardless of `count`.
  void (*dots)(const Storage* row, const Storage* matrix, const int64_t* ids, int64_t count,
               int64_t d, Compute* out);
  // out[:] = sum_c weights[c] * matrix[ids[c]], added in the order of c; zero if count is 0.
  void (*weighted_sum)(const Storage* matrix, const int64_t* ids, const Compute* weights,
                       int64_t count, int64_t d, Compute* out);
};

// Returns the largest number of ranks among which the columns of a row can be divided: the number
// of virtual lanes of a sum.
template <class Compute>
constexpr int most_ranks() {
  return 64 / sizeof(Compute);
}

// Operations on one row [d].
template <class Compute>
struct UpdateKernels {
  // Updates a parameter and its moments by one Adam step.
  void (*adam)(Compute* parameter, Compute* first, Compute* second, const Compute* gradient,
               int64_t d, const AdamScalars<Compute>& scalars);
  // target[:] += factor * source[:]
  void (*add_scaled)(Compute* target, const Compute* source, Compute factor, int64_t d);
  // target[:] *= factor
  void (*multiply)(Compute* target, Compute factor, int64_t d);
  // Returns the squared norm.
  Compute (*squared_norm)(const Compute* row, int64_t d);
  // out[c] = row . matrix[ids[c]] for c < count, over some columns of rows of `width`: the columns
  // i with i % ranks == r for some r, stored one after the other, `columns` of them. `ranks` is a
  // power of two up to most_ranks<Compute>(). Added by a tree of halves, p[r] += p[r + ranks / 2]
  // and so on, the results for all r have the bits of RowKernels::dots.
  void (*partial_dots)(const Compute* row, const Compute* matrix, const int64_t* ids, int64_t count,
                       int64_t width, int64_t columns, int ranks, Compute* out);
};

// Packing of a row of the screening GEMM's operands into 32-bit units: floats; pairs of bfloat16;
// floats rounded to bfloat16; or pairs of 16-bit integers, followed by a unit with the float that
// 2^15 of them are worth in this row.
enum class Packing { float32, bf16_pairs, bf16_as_float, int16_pairs };

// The screening GEMM: a tile of `rows` x `columns` scores, kept in registers over all of d.
// Operands have the layout [units][rows] and [units][columns]; see `Packing` for the units.
struct ScreenKernels {
  int rows = 0;
  int columns = 0;
  // Compares scores plus bias [columns] with a threshold per row. Returns a mask of the rows with a
  // hit, a score above the threshold; if there is one, `scores` [rows][columns] is written, without
  // the bias. Only the first `used` rows count: a tile may leave out the others, which then have no
  // hits and undefined scores. A column whose bias is NaN has no hits.
  using Tile = uint32_t (*)(const uint32_t* a, const uint32_t* b, int64_t units, int64_t used,
                            const float* bias, const float* thresholds, float* scores);
  Tile tile = nullptr;
  Tile absolute_tile = nullptr;  // compares the absolute values of the sums
};

// Operations on the candidate list of a row. One table of them ranks scores by value, another by
// absolute value.
struct SelectKernels {
  // Appends (score + bias, first + column) for each column whose sum exceeds `threshold`, and
  // returns their number. Both outputs need room for `columns` + 16 entries.
  int64_t (*filter)(const float* scores, const float* bias, int64_t columns, float threshold,
                    int32_t first, float* out_scores, int32_t* out_ids);
  // Returns a value that at least k of the scores reach, the k-th largest score or slightly less.
  float (*reached_by)(const float* scores, int64_t count, int64_t k);
  // Moves the entries with score >= floor to the front, in their order, and returns their number.
  int64_t (*keep_from)(float* scores, int32_t* ids, int64_t count, float floor);
};

// Writes to places[c] how many scores come before scores[c] in descending order, equal ones in the
// order that they have. Scores must not be NaN. Takes time with the square of `count`.
using Places = void (*)(const float* scores, int64_t count, int32_t* places);

// Packing of rows.
struct PackKernels {
  // Packs one row [d] times `scale` into `units`, and writes the squared norms of the exact row and
  // of its rounding error; float sums of these are raised by their own worst rounding error.
  template <class Storage>
  using Row = void (*)(const Storage* row, int64_t d, double scale, Packing packing,
                       uint32_t* units, double* squared, double* lost);
  Row<float> f32;
  Row<double> f64;
  Row<bf16> b16;
  // Transposes [rows][units] to [units][width], with zeros in columns from `rows` on.
  void (*interleave)(const uint32_t* from, int64_t rows, int64_t units, int64_t width,
                     uint32_t* to);
};

// All kernels of a level.
struct Kernels {
  RowKernels<float> f32;
  RowKernels<double> f64;
  RowKernels<bf16> b16;
  UpdateKernels<float> update_f32;
  UpdateKernels<double> update_f64;
  SelectKernels select;
  SelectKernels absolute_select;
  Places places;
  PackKernels pack;
  ScreenKernels screen_f32;
  // Null tiles: the instruction set lacks the product, or another screen is faster.
  ScreenKernels screen_bf16;
  ScreenKernels screen_int16;
};

// Returns the operations on lists that rank scores by value or by absolute value.
static inline const SelectKernels& select_kernels_of(const Kernels& kernels, bool absolute) {
  return absolute ? kernels.absolute_select : kernels.select;
}

// Returns the kernels for elements of type Storage.
template <class Storage>
const auto& row_kernels_of(const Kernels& kernels) {
  if constexpr (sizeof(Storage) == 2) {
    return kernels.b16;
  } else if constexpr (sizeof(Storage) == 4) {
    return kernels.f32;
  } else {
    return kernels.f64;
  }
}

template <class Compute>
const auto& update_kernels_of(const Kernels& kernels) {
  if constexpr (sizeof(Compute) == 4) {
    return kernels.update_f32;
  } else {
    return kernels.update_f64;
  }
}

template <class Storage>
auto pack_row_of(const Kernels& kernels) {
  if constexpr (sizeof(Storage) == 2) {
    return kernels.pack.b16;
  } else if constexpr (sizeof(Storage) == 4) {
    return kernels.pack.f32;
  } else {
    return kernels.pack.f64;
  }
}

// The tables of the levels; only those that the processor supports may be called.
namespace portable {
Kernels kernels();
}
namespace avx2 {
Kernels kernels();
}
namespace avx512 {
Kernels kernels();
}
namespace avx512_bf16 {
Kernels kernels();
}

}  // namespace saefast
