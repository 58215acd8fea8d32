// The interface of a team: lanes that process one row together, on a GPU or a CPU.
//
// A team is a class with
//   SIZE                the number of lanes; all run the same code and meet in the functions below
//   lane()              the index of this lane, 0 to SIZE - 1
//   sync()              a barrier that makes all earlier writes of lanes visible to all
//   any(bool)           whether it holds in some lane
//   sum(int32_t), smallest(int64_t), largest(int64_t)    over all lanes, the same in each
//   rank(bool)          the number of previous lanes, and of all lanes, in which it holds; orders
//   reads and writes as sync() does
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SAEFAST_DEVICE __device__
#else
#define SAEFAST_DEVICE
#endif

namespace saefast {

// Numbers of lanes in which a condition holds.
struct Rank {
  int32_t before;  // of the lanes before this one
  int32_t all;     // of all lanes
};

// A team of one lane, on any processor.
struct OneLane {
  static constexpr int32_t SIZE = 1;
  SAEFAST_DEVICE int32_t lane() const { return 0; }
  SAEFAST_DEVICE void sync() {}
  SAEFAST_DEVICE bool any(bool holds) { return holds; }
  SAEFAST_DEVICE int32_t sum(int32_t mine) { return mine; }
  SAEFAST_DEVICE int64_t smallest(int64_t mine) { return mine; }
  SAEFAST_DEVICE int64_t largest(int64_t mine) { return mine; }
  SAEFAST_DEVICE Rank rank(bool holds) { return {0, holds ? 1 : 0}; }
};

}  // namespace saefast
