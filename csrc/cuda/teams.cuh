// The teams of row_team.h on a GPU: a warp, and a block of several warps.
#pragma once
#include <cstdint>

#include "row_team.h"

namespace saefast {

constexpr unsigned ALL_LANES = 0xffffffffu;

// Returns the mask of the lanes before `lane`.
__device__ inline unsigned lanes_before(int32_t lane) { return (1u << lane) - 1; }

// A warp, for lists that fit its share of the shared memory.
struct WarpTeam {
  static constexpr int32_t SIZE = 32;
  // Teams per block.
  static constexpr int32_t TOGETHER = 4;

  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x % SIZE); }
  __device__ void sync() { __syncwarp(); }
  __device__ bool any(bool holds) { return __any_sync(ALL_LANES, holds); }
  __device__ int32_t sum(int32_t mine) { return __reduce_add_sync(ALL_LANES, mine); }
  __device__ int64_t smallest(int64_t mine) {
    for (int32_t far = SIZE / 2; far > 0; far /= 2) {
      const int64_t other = __shfl_xor_sync(ALL_LANES, mine, far);
      mine = other < mine ? other : mine;
    }
    return mine;
  }
  __device__ int64_t largest(int64_t mine) {
    for (int32_t far = SIZE / 2; far > 0; far /= 2) {
      const int64_t other = __shfl_xor_sync(ALL_LANES, mine, far);
      mine = other > mine ? other : mine;
    }
    return mine;
  }
  __device__ Rank rank(bool holds) {
    __syncwarp();  // a vote does not order accesses to memory
    const unsigned holding = __ballot_sync(ALL_LANES, holds);
    return {__popc(holding & lanes_before(lane())), __popc(holding)};
  }
};

// A block, for lists that are too long for one warp.
class BlockTeam {
 public:
  static constexpr int32_t SIZE = 256;
  static constexpr int32_t TOGETHER = 1;
  static constexpr int32_t WARPS = SIZE / WarpTeam::SIZE;

  // Shared memory by which warps exchange values. Two buffers are used in turn: a warp that writes
  // the next value cannot overwrite one that another warp still reads.
  struct Boards {
    int64_t said[2][WARPS];
  };

  __device__ explicit BlockTeam(Boards& boards) : boards_(boards) {}

  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ void sync() { __syncthreads(); }
  __device__ bool any(bool holds) { return __syncthreads_or(holds) != 0; }
  __device__ int32_t sum(int32_t mine) {
    const int64_t* said = tell(warp_.sum(mine));
    int64_t all = 0;
    for (int32_t i = 0; i < WARPS; ++i) all += said[i];
    return static_cast<int32_t>(all);
  }
  __device__ int64_t smallest(int64_t mine) {
    const int64_t* said = tell(warp_.smallest(mine));
    int64_t least = said[0];
    for (int32_t i = 1; i < WARPS; ++i) least = said[i] < least ? said[i] : least;
    return least;
  }
  __device__ int64_t largest(int64_t mine) {
    const int64_t* said = tell(warp_.largest(mine));
    int64_t most = said[0];
    for (int32_t i = 1; i < WARPS; ++i) most = said[i] > most ? said[i] : most;
    return most;
  }
  __device__ Rank rank(bool holds) {
    const Rank within = warp_.rank(holds);
    const int64_t* said = tell(within.all);
    Rank rank{within.before, 0};
    for (int32_t i = 0; i < WARPS; ++i) {
      const int32_t there = static_cast<int32_t>(said[i]);
      if (i < lane() / WarpTeam::SIZE) rank.before += there;
      rank.all += there;
    }
    return rank;
  }

 private:
  // Passes the value of this warp to all warps, and returns the values of all warps.
  __device__ const int64_t* tell(int64_t of_warp) {
    turn_ ^= 1;
    int64_t* said = boards_.said[turn_];
    if (warp_.lane() == 0) said[lane() / WarpTeam::SIZE] = of_warp;
    __syncthreads();
    return said;
  }

  Boards& boards_;
  WarpTeam warp_;
  int32_t turn_ = 0;
};

}  // namespace saefast
