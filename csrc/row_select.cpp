// Teams on a CPU for the logic in csrc/cuda/.
#include "row_select.h"

#include <array>
#include <barrier>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/choose_row.h"

namespace saefast {
namespace {

// The lanes of a warp as threads. A lane sees what others wrote only after a barrier, as on a GPU.
class ThreadTeam {
 public:
  static constexpr int32_t SIZE = 32;

  // Barrier and exchange of values between the lanes. Two buffers are used in turn, as in
  // BlockTeam.
  struct Meeting {
    std::barrier<> all{SIZE};
    std::array<std::array<int64_t, SIZE>, 2> said{};
  };

  ThreadTeam(int32_t lane, Meeting& meeting) : lane_(lane), meeting_(meeting) {}

  int32_t lane() const { return lane_; }
  void sync() { meeting_.all.arrive_and_wait(); }
  bool any(bool holds) { return rank(holds).all > 0; }
  int32_t sum(int32_t mine) {
    int64_t all = 0;
    for (const int64_t said : tell(mine)) all += said;
    return static_cast<int32_t>(all);
  }
  int64_t smallest(int64_t mine) {
    for (const int64_t said : tell(mine)) mine = said < mine ? said : mine;
    return mine;
  }
  int64_t largest(int64_t mine) {
    for (const int64_t said : tell(mine)) mine = said > mine ? said : mine;
    return mine;
  }
  Rank rank(bool holds) {
    const auto& said = tell(holds ? 1 : 0);
    Rank rank{0, 0};
    for (int32_t i = 0; i < SIZE; ++i) {
      rank.before += i < lane_ ? static_cast<int32_t>(said[i]) : 0;
      rank.all += static_cast<int32_t>(said[i]);
    }
    return rank;
  }

 private:
  // Passes a value to all lanes, and returns the values of all lanes.
  const std::array<int64_t, SIZE>& tell(int64_t mine) {
    turn_ ^= 1;
    meeting_.said[turn_][lane_] = mine;
    sync();
    return meeting_.said[turn_];
  }

  int32_t lane_;
  Meeting& meeting_;
  int32_t turn_ = 0;
};

// Calls body(team) in every lane; throws std::invalid_argument unless `lanes` is 1 or 32.
template <class Body>
void with_team(int32_t lanes, const Body& body) {
  if (lanes == OneLane::SIZE) {
    OneLane team;
    body(team);
  } else if (lanes == ThreadTeam::SIZE) {
    ThreadTeam::Meeting meeting;
    std::vector<std::thread> threads;
    for (int32_t lane = 0; lane < lanes; ++lane) {
      threads.emplace_back([&meeting, &body, lane] {
        ThreadTeam team(lane, meeting);
        body(team);
      });
    }
    for (std::thread& thread : threads) thread.join();
  } else {
    throw std::invalid_argument("lanes must be 1 or 32, got " + std::to_string(lanes));
  }
}

template <bool Hot, bool Bounded>
void keep(const Screened& screened, int64_t row, int32_t lanes) {
  std::vector<int64_t> certain(static_cast<size_t>(screened.capacity));
  std::vector<int32_t> hot(HOT_BATCH);
  with_team(lanes, [&]<class Team>(Team& team) {
    // Both teams process as many columns at a time as a warp on the GPU.
    constexpr int32_t VECTORS = 2 * 32 / Team::SIZE;
    RowKeeper<Hot, Bounded, VECTORS, Team>(team, screened, row, certain.data()).run(hot.data());
  });
}

}  // namespace

void keep_best_row(const Screened& screened, int64_t row, bool hot, bool bounded, int32_t lanes) {
  const auto keeping = hot ? (bounded ? keep<true, true> : keep<true, false>)
                           : (bounded ? keep<false, true> : keep<false, false>);
  keeping(screened, row, lanes);
}

void choose_row_of(const int64_t* list, int32_t count, int32_t k, float* values, int64_t* indices,
                   int32_t lanes) {
  std::vector<int64_t> sorted(static_cast<size_t>(power_of_two(count)));
  with_team(lanes, [&](auto& team) {
    choose_row(team, list, count, k, sorted.data(), [&](int32_t i, int64_t key) {
      values[i] = score_of(key);
      indices[i] = index_of(key);
    });
  });
}

void keys_of(const float* scores, int32_t count, int64_t* keys) {
  for (int32_t i = 0; i < count; ++i) keys[i] = key_of(scores[i], i);
}

}  // namespace saefast
