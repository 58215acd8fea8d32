// What the lanes that work on one row together can do, so that its logic is written once.
//
// A team is a class with
//   SIZE                how many lanes; all run the same code and meet in the functions below
//   lane()              0 .. SIZE - 1
//   sync()              what lanes wrote before, all lanes see after
//   any(bool)           whether it holds in some lane
//   sum(int32_t), smallest(int64_t), largest(int64_t)    over the lanes, the same in each
//   rank(bool)          in how many lanes before this one it holds, and in how many of all; orders
//                       reads and writes as sync() does
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SAEFAST_DEVICE __device__
#else
#define SAEFAST_DEVICE
#endif

namespace saefast {

struct Rank {
  int32_t before;
  int32_t all;
};

// One lane alone, on any processor.
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
