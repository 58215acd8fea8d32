// The inner loops that exist once per instruction set, behind one table of pointers.
//
// Every level computes the same bits: sums run over a fixed number of virtual lanes (kLanes),
// are combined in a fixed tree, and use fused multiply-add. The one exception is `ScreenKernels`,
// whose sums may run in any order, since its results are used with an error bound.
#pragma once
#include <cstdint>

#include "../storage.h"

namespace saefast {

template <class Compute>
struct AdamScalars {
  Compute step_size;  // lr / (1 - beta1^t)
  Compute beta2;
  Compute one_minus_beta1;
  Compute one_minus_beta2;
  Compute inverse_root_correction;  // 1 / sqrt(1 - beta2^t)
  Compute eps;
};

template <class Storage>
struct RowKernels {
  using Compute = compute_t<Storage>;
  // out[c] = row . matrix[ids[c]], every product summed in the same order whatever `count` is.
  void (*dots)(const Storage* row, const Storage* matrix, const int64_t* ids, int64_t count,
               int64_t d, Compute* out);
  // out[:] = sum_c weights[c] * matrix[ids[c]], added in the order of c.
  void (*weighted_sum)(const Storage* matrix, const int64_t* ids, const Compute* weights,
                       int64_t count, int64_t d, Compute* out);
};

template <class Compute>
struct UpdateKernels {
  // One Adam step on a row: moments and parameter are updated from `gradient`.
  void (*adam)(Compute* parameter, Compute* first, Compute* second, const Compute* gradient,
               int64_t d, const AdamScalars<Compute>& scalars);
  // target[:] += factor * source[:]
  void (*add_scaled)(Compute* target, const Compute* source, Compute factor, int64_t d);
  void (*multiply)(Compute* target, Compute factor, int64_t d);
  Compute (*squared_norm)(const Compute* row, int64_t d);
};

// How a row of the screening GEMM's operands is packed into 32-bit units. `int16_pairs` are
// integers of 16 bits, two in a unit, and a last unit with the float that 2^15 of them are worth in
// this row.
enum class Packing { float32, bf16_pairs, bf16_as_float, int16_pairs };

// The screening GEMM: a tile of `rows` x `columns` scores, kept in registers over all of d.
// Operands lie as [units][rows] and [units][columns]; see `Packing` for the units.
struct ScreenKernels {
  int rows = 0;
  int columns = 0;
  // Scores plus bias against one threshold per row. Returns a bit for each row with a hit, and
  // writes `scores` [rows][columns], still without bias, if any row has one. Only the first `used`
  // rows count, so a tile may leave the others out: they have no hits, and any scores.
  uint32_t (*tile)(const uint32_t* a, const uint32_t* b, int64_t units, int64_t used,
                   const float* bias, const float* thresholds, float* scores) = nullptr;
};

struct SelectKernels {
  // Appends (score + bias, first + column) for each column where the sum exceeds `threshold`.
  // Both outputs need room for `columns` + 16 entries. Returns the number appended.
  int64_t (*filter)(const float* scores, const float* bias, int64_t columns, float threshold,
                    int32_t first, float* out_scores, int32_t* out_ids);
  // A value that at least k of the scores reach, at or slightly below the k-th largest.
  float (*reached_by)(const float* scores, int64_t count, int64_t k);
  // Moves the entries with score >= floor to the front, keeping their order; returns how many.
  int64_t (*keep_from)(float* scores, int32_t* ids, int64_t count, float floor);
};

struct PackKernels {
  // The units of one row times `scale`, and what the error bound needs: the squared norm of the
  // exact row and of what rounding took from it.
  template <class Storage>
  using Row = void (*)(const Storage* row, int64_t d, double scale, Packing packing,
                       uint32_t* units, double* squared, double* lost);
  Row<float> f32;
  Row<double> f64;
  Row<bf16> b16;
  // [rows][units] to [units][width]; columns from `rows` on are zero.
  void (*interleave)(const uint32_t* from, int64_t rows, int64_t units, int64_t width,
                     uint32_t* to);
};

struct Kernels {
  RowKernels<float> f32;
  RowKernels<double> f64;
  RowKernels<bf16> b16;
  UpdateKernels<float> update_f32;
  UpdateKernels<double> update_f64;
  SelectKernels select;
  PackKernels pack;
  ScreenKernels screen_f32;
  // Their tiles are null where the instruction set has no such product, or a faster one.
  ScreenKernels screen_bf16;
  ScreenKernels screen_int16;
};

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
