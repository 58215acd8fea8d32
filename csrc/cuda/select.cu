// CUDA kernels that keep and sort the candidate list of every row, with the logic of keep_row.h and
// choose_row.h.
#include "select.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "choose_row.h"
#include "keep_row.h"
#include "teams.cuh"

namespace saefast {
namespace {

// Longest list that a warp keeps: with more shared memory per warp, too few would run on a
// multiprocessor.
constexpr int32_t MOST_FOR_A_WARP = 2048;
// Bytes of dynamic shared memory that a launch may use without an attribute.
constexpr int32_t SHARED_WITHOUT_ASKING = 48 << 10;

// Groups of four columns that a lane processes at a time; a lane of a warp has two, to have enough
// loads in flight.
template <class Team>
constexpr int32_t VECTORS = Team::TOGETHER > 1 ? 2 : 1;

// Calls body(team, row, keys) for the row of this thread's team; `keys` is the row's part of the
// dynamic shared memory, `bytes` long.
template <class Team, class Body>
__device__ void for_row_of_team(int64_t rows, int32_t bytes, const Body& body) {
  extern __shared__ int64_t shared[];
  const int32_t which = static_cast<int32_t>(threadIdx.x) / Team::SIZE;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * Team::TOGETHER + which;
  int64_t* keys = shared + which * (bytes / static_cast<int32_t>(sizeof(int64_t)));
  if (row >= rows) return;
  if constexpr (Team::TOGETHER == 1) {
    __shared__ BlockTeam::Boards boards;
    BlockTeam team(boards);
    body(team, row, keys);
  } else {
    WarpTeam team;
    body(team, row, keys);
  }
}

// Threads of a block.
template <class Team>
constexpr int32_t THREADS = Team::SIZE * Team::TOGETHER;

// Blocks for which a multiprocessor should have registers; shared memory seldom permits more.
template <class Team>
constexpr int32_t BLOCKS = Team::TOGETHER > 1 ? 5 : 3;

// Updates the list of one row per team, see RowKeeper.
template <class Team, bool Hot, bool Bounded>
__global__ __launch_bounds__(THREADS<Team>,
                             BLOCKS<Team>) void keep_best_rows(const Screened screened,
                                                               int64_t rows, int32_t bytes) {
  for_row_of_team<Team>(rows, bytes, [&](Team& team, int64_t row, int64_t* keys) {
    auto* hot = reinterpret_cast<int32_t*>(keys + screened.capacity);
    RowKeeper<Hot, Bounded, VECTORS<Team>, Team>(team, screened, row, keys).run(hot);
  });
}

__device__ void store(float* at, float value) { *at = value; }
__device__ void store(__nv_bfloat16* at, float value) { *at = __float2bfloat16_rn(value); }

// Writes the k best of one row per team, see choose_row.
template <class Team, class Value>
__global__ __launch_bounds__(THREADS<Team>, BLOCKS<Team>) void choose_rows(const Chosen chosen,
                                                                           int64_t rows,
                                                                           int32_t bytes) {
  for_row_of_team<Team>(rows, bytes, [&](Team& team, int64_t row, int64_t* keys) {
    Value* values = static_cast<Value*>(chosen.values) + row * chosen.k;
    int64_t* indices = chosen.indices + row * chosen.k;
    choose_row(team, chosen.keys + row * chosen.capacity, chosen.counts[row], chosen.k, keys,
               [&](int32_t i, int64_t key) {
                 store(values + i, score_of(key));
                 indices[i] = index_of(key);
               });
  });
}

// Throws std::runtime_error if a call of CUDA failed.
void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("a CUDA kernel could not start: ") +
                             cudaGetErrorString(error));
  }
}

// Launches a kernel for all rows, with `bytes` of shared memory per row.
template <class Team, class Operands>
void launch(void (*kernel)(Operands, int64_t, int32_t), const Operands& operands, int64_t rows,
            int32_t bytes, Stream stream) {
  const int32_t shared = bytes * Team::TOGETHER;
  if (shared > SHARED_WITHOUT_ASKING) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  }
  const auto blocks = static_cast<unsigned>((rows + Team::TOGETHER - 1) / Team::TOGETHER);
  kernel<<<blocks, THREADS<Team>, shared, reinterpret_cast<cudaStream_t>(stream)>>>(operands, rows,
                                                                                    bytes);
  check(cudaGetLastError());
}

template <class Team>
void keep_best_by(const Screened& screened, int64_t rows, bool hot, bool bounded, Stream stream) {
  int32_t bytes = screened.capacity * static_cast<int32_t>(sizeof(int64_t));
  if (hot) bytes += HOT_BATCH * static_cast<int32_t>(sizeof(int32_t));
  const auto kernel =
      hot ? (bounded ? keep_best_rows<Team, true, true> : keep_best_rows<Team, true, false>)
          : (bounded ? keep_best_rows<Team, false, true> : keep_best_rows<Team, false, false>);
  launch<Team>(kernel, screened, rows, bytes, stream);
}

template <class Team>
void choose_by(const Chosen& chosen, int64_t rows, bool bfloat16, Stream stream) {
  const int32_t bytes = chosen.capacity * static_cast<int32_t>(sizeof(int64_t));
  const auto kernel = bfloat16 ? choose_rows<Team, __nv_bfloat16> : choose_rows<Team, float>;
  launch<Team>(kernel, chosen, rows, bytes, stream);
}

}  // namespace

void keep_best(const Screened& screened, int64_t rows, bool hot, bool bounded, Stream stream) {
  if (rows == 0) return;
  const auto by = screened.capacity > MOST_FOR_A_WARP ? keep_best_by<BlockTeam>  //
                                                      : keep_best_by<WarpTeam>;
  by(screened, rows, hot, bounded, stream);
}

void choose(const Chosen& chosen, int64_t rows, bool bfloat16, Stream stream) {
  if (rows == 0) return;
  const auto by = chosen.capacity > MOST_FOR_A_WARP ? choose_by<BlockTeam> : choose_by<WarpTeam>;
  by(chosen, rows, bfloat16, stream);
}

}  // namespace saefast
