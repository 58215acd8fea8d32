// One row of `keep_best`: the columns that may still be among its k best, as in
// kernels/encode/keep_best.py.
#pragma once
#include <cmath>
#include <cstdint>

#include "cut_list.h"
#include "keys.h"
#include "row_team.h"

namespace saefast {

// Count of a row whose list was too short; all of its columns are scored exactly later.
constexpr int32_t OVERFLOWN = -1;

constexpr int32_t GROUP = 32;       // columns per group whose maximum `hot_groups` stores
constexpr int32_t HOT_BATCH = 256;  // groups whose maxima are read before their columns are

// The operands of all rows; see `Bounds`, `Lists` and `Screened` in kernels/encode/lists.py.
struct Screened {
  const float* scores;  // [rows, width]
  const float* maxima;  // [rows, width / GROUP], read if only hot groups were stored
  const float* shift;   // [latents]
  const float* norm;    // [latents]
  const float* lost;    // [latents]
  const float* reach;   // [rows]
  const float* spread;  // [rows]
  int64_t* keys;        // [rows, capacity] lists, updated, as the next three
  int32_t* counts;      // [rows]
  int64_t* floor_keys;  // [rows]
  float* floor;         // [rows]
  int32_t first;        // latent of the first column
  int32_t columns;      // number of columns
  int64_t width;        // row stride of `scores`
  int32_t k;            // number of columns wanted per row
  int32_t capacity;     // length of a list, at least k + block
  int32_t block;        // places of every list that are free between calls
};

// Four neighbouring floats.
struct Four {
  float of[4];
};

// Reads four floats from an address that is a multiple of 16.
SAEFAST_DEVICE inline Four read_four(const float* aligned) {
#if defined(__CUDA_ARCH__)
  const float4 four = __ldg(reinterpret_cast<const float4*>(aligned));
  return {{four.x, four.y, four.z, four.w}};
#else
  // A GPU would fault here; on a CPU the result shows the mistake.
  if (reinterpret_cast<uintptr_t>(aligned) % sizeof(Four) != 0) return {{NAN, NAN, NAN, NAN}};
  return {{aligned[0], aligned[1], aligned[2], aligned[3]}};
#endif
}

// The update of one row's list by a team of lanes. Hot: only hot groups are read, whose `scores`
// include the shift; otherwise all columns are, without it. Bounded: keys contain upper bounds of
// scores; otherwise screened scores. Each lane processes Vectors times four columns at a time.
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

  // Appends the columns of the row to its list. `hot` is scratch for HOT_BATCH groups that the team
  // shares.
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

  // Lists the hot groups among HOT_BATCH groups from `begin` on; returns how many there are.
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

  // Appends the columns that pass, of all `work` columns or of those of the hot groups.
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

  // Returns the position in a sweep of the first of a lane's four columns.
  SAEFAST_DEVICE int32_t offset_of(int32_t v) const { return 4 * (v * Team::SIZE + team_.lane()); }

  // Returns upper bounds of the scores of four columns, -infinity beyond the last column.
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

  // Reads four floats of which `left` exist, with `other` in place of the rest.
  SAEFAST_DEVICE Four four_at(const float* at, int32_t left, float other) const {
    if (aligned_ && left >= 4) return read_four(at);
    Four four;
    for (int32_t j = 0; j < 4; ++j) four.of[j] = j < left ? read(at + j) : other;
    return four;
  }

  // Appends the columns of a sweep that pass: all at once, or, if the list might not hold them all,
  // as many at a time as it certainly holds.
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

  // Cuts the list until `block` places are free, or declares it overflown.
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

  // Cuts the list. A floor that a few more than k keys reach serves as well, and takes fewer
  // passes.
  SAEFAST_DEVICE void cut(int32_t spare) {
    now_ = cut_list(team_, list_, certain_, now_, bounds_, all_.k, spare);
    bar_ = score_of(now_.floor_key);
  }

  // Cuts a list that is long enough once more, and writes the state of the row.
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
