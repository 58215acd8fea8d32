// One row of `keep_best`: the columns that may still be among its k best, as in
// kernels/keep_best.py.
#pragma once
#include <cmath>
#include <cstdint>

#include "cut_list.h"
#include "keys.h"
#include "row_team.h"

namespace saefast {

// The count of a row whose list is too short for it: its columns are all scored exactly later.
constexpr int32_t OVERFLOWN = -1;

constexpr int32_t GROUP = 32;       // columns whose maximum `hot_groups` stores
constexpr int32_t HOT_BATCH = 256;  // groups that are looked through before their columns are

// The operands of all rows.
struct Screened {
  const float* scores;  // [rows, width]
  const float* maxima;  // [rows, width / GROUP], where only hot groups are looked at
  const float* shift;   // [latents], like norm and lost
  const float* norm;
  const float* lost;
  const float* reach;  // [rows], like spread
  const float* spread;
  int64_t* keys;  // [rows, capacity]
  int32_t* counts;
  int64_t* floor_keys;
  float* floor;
  int32_t first;    // column 0 here is latent `first`
  int32_t columns;  // that are real, of `width`
  int64_t width;
  int32_t k;
  int32_t capacity;  // of a list; at least k + block
  int32_t block;     // free places that every list has left between calls
};

struct Four {
  float of[4];
};

SAEFAST_DEVICE inline Four read_four(const float* aligned) {
#if defined(__CUDA_ARCH__)
  const float4 four = __ldg(reinterpret_cast<const float4*>(aligned));
  return {{four.x, four.y, four.z, four.w}};
#else
  // A GPU would stop here; a CPU shows the mistake in its result.
  if (reinterpret_cast<uintptr_t>(aligned) % sizeof(Four) != 0) return {{NAN, NAN, NAN, NAN}};
  return {{aligned[0], aligned[1], aligned[2], aligned[3]}};
#endif
}

// Hot: `scores` hold the hot groups only, biased already; otherwise all columns, without the bias.
// Each lane looks at Vectors times four columns at once.
template <bool Hot, bool Bounded, int32_t Vectors, class Team>
class RowKeeper {
 public:
  // `certain` is scratch for `capacity` keys that the team shares.
  SAEFAST_DEVICE RowKeeper(Team& team, const Screened& all, int64_t row, int64_t* certain)
      : team_(team),
        all_(all),
        row_(row),
        scores_(all.scores + row * all.width),
        list_(all.keys + row * all.capacity),
        certain_(certain),
        bounds_{all.shift, all.norm, all.lost, 0.0f, 0.0f},
        bar_(all.floor[row]),
        now_{all.counts[row], all.floor_keys[row]} {
    uintptr_t addresses = reinterpret_cast<uintptr_t>(scores_);
    if constexpr (!Hot) addresses |= reinterpret_cast<uintptr_t>(all.shift + all.first);
    if constexpr (Bounded) {
      bounds_.reach = read(all.reach + row);
      bounds_.spread = read(all.spread + row);
      addresses |= reinterpret_cast<uintptr_t>(all.norm + all.first);
      addresses |= reinterpret_cast<uintptr_t>(all.lost + all.first);
    }
    aligned_ = addresses % sizeof(Four) == 0;
  }

  // `hot` is scratch for HOT_BATCH groups that the team shares.
  SAEFAST_DEVICE void run(int32_t* hot) {
    if constexpr (Hot) {
      const int64_t groups = all_.width / GROUP;
      for (int64_t group = 0; group < groups && now_.count != OVERFLOWN; group += HOT_BATCH) {
        const int32_t found = find_hot(group, groups, hot);
        feed(static_cast<uint32_t>(found * GROUP), hot);
      }
    } else {
      feed(static_cast<uint32_t>(all_.columns), hot);
    }
    if (grown_) finish();
  }

 private:
  static constexpr int32_t SWEEP = 4 * Vectors * Team::SIZE;

  SAEFAST_DEVICE int32_t find_hot(int64_t begin, int64_t groups, int32_t* hot) {
    team_.sync();
    const float* maxima = all_.maxima + row_ * groups;
    int32_t found = 0;
    for (int32_t start = 0; start < HOT_BATCH; start += Team::SIZE) {
      const int64_t group = begin + start + team_.lane();
      const bool is_hot = group < groups && read(maxima + group) > bar_;
      const Rank rank = team_.rank(is_hot);
      if (is_hot) hot[found + rank.before] = static_cast<int32_t>(group);
      found += rank.all;
    }
    team_.sync();
    return found;
  }

  // All columns, or those of the hot groups: `work` of them.
  SAEFAST_DEVICE void feed(uint32_t work, const int32_t* hot) {
    for (uint32_t start = 0; start < work && now_.count != OVERFLOWN; start += SWEEP) {
      int32_t column[Vectors];
      Four most[Vectors];
      bool passes = false;
      for (int32_t v = 0; v < Vectors; ++v) {
        const uint32_t at = start + offset_of(v);
        column[v] = all_.columns;
        if (at < work) column[v] = static_cast<int32_t>(at);
        if constexpr (Hot) {
          if (at < work) column[v] = hot[at / GROUP] * GROUP + static_cast<int32_t>(at % GROUP);
        }
        most[v] = most_of(column[v]);
        for (int32_t j = 0; j < 4; ++j) passes |= most[v].of[j] > bar_;
      }
      if (team_.any(passes)) admit(column, most);
    }
  }

  // The place in a sweep of the first of a lane's four columns.
  SAEFAST_DEVICE int32_t offset_of(int32_t v) const { return 4 * (v * Team::SIZE + team_.lane()); }

  // What the scores of four columns are at most, -infinity beyond the last column.
  SAEFAST_DEVICE Four most_of(int32_t column) const {
    const int32_t left = all_.columns - column;
    Four most = four_at(scores_ + column, left, -INFINITY);
    if constexpr (!Hot) {
      const Four shift = four_at(all_.shift + all_.first + column, left, 0.0f);
      for (int32_t j = 0; j < 4; ++j) most.of[j] += shift.of[j];
    }
    if constexpr (Bounded) {
      const Four norm = four_at(all_.norm + all_.first + column, left, 0.0f);
      const Four lost = four_at(all_.lost + all_.first + column, left, 0.0f);
      for (int32_t j = 0; j < 4; ++j) most.of[j] += bounds_.doubt(norm.of[j], lost.of[j]);
    }
    return most;
  }

  SAEFAST_DEVICE Four four_at(const float* at, int32_t left, float other) const {
    if (aligned_ && left >= 4) return read_four(at);
    Four four;
    for (int32_t j = 0; j < 4; ++j) four.of[j] = j < left ? read(at + j) : other;
    return four;
  }

  // Appends the columns of a sweep that pass: at once, or where the list may not hold them all, as
  // many as it surely holds at a time.
  SAEFAST_DEVICE void admit(const int32_t* column, const Four* most) {
    grown_ = true;
    const int32_t piece = now_.count + SWEEP <= all_.capacity ? SWEEP : all_.block;
    for (int32_t begin = 0; begin < SWEEP && now_.count != OVERFLOWN; begin += piece) {
      for (int32_t v = 0; v < Vectors; ++v) {
        for (int32_t j = 0; j < 4; ++j) {
          const int32_t place = offset_of(v) + j - begin;
          const bool passes = place >= 0 && place < piece && most[v].of[j] > bar_;
          const Rank rank = team_.rank(passes);
          if (passes) {
            const int64_t key = key_of(most[v].of[j], all_.first + column[v] + j);
            list_[now_.count + rank.before] = key;
          }
          now_.count += rank.all;
        }
      }
      make_room();
    }
  }

  SAEFAST_DEVICE void make_room() {
    const int32_t longest = all_.capacity - all_.block;
    for (int32_t spare = all_.k / 4; now_.count > longest; spare = 0) {
      cut(spare);
      if (spare == 0 && now_.count > longest) {
        now_.count = OVERFLOWN;
        bar_ = INFINITY;
      }
    }
  }

  // A floor with a few more than k above it serves as well, and is found in fewer passes.
  SAEFAST_DEVICE void cut(int32_t spare) {
    now_ = cut_list(team_, list_, certain_, now_, bounds_, all_.k, spare);
    bar_ = score_of(now_.floor_key);
  }

  SAEFAST_DEVICE void finish() {
    if (now_.count >= all_.k + all_.k / 4) cut(all_.k / 4);
    if (team_.lane() == 0) {
      all_.counts[row_] = now_.count;
      all_.floor_keys[row_] = now_.floor_key;
      all_.floor[row_] = bar_;
    }
  }

  Team& team_;
  const Screened& all_;
  int64_t row_;
  const float* scores_;
  int64_t* list_;
  int64_t* certain_;
  RowBounds<Bounded> bounds_;
  bool aligned_;
  float bar_;
  Cut now_;
  bool grown_ = false;
};

}  // namespace saefast
