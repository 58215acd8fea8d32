#include "xxh64.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "parallel.h"

static_assert(std::endian::native == std::endian::little,
              "XXH64 reads words in little-endian order");

namespace saefast {

namespace {

constexpr uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                   P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

template <class Word>
Word word_at(const unsigned char* place) {
  Word word;
  std::memcpy(&word, place, sizeof word);
  return word;
}

// For a fixed word this is a bijection of `lane`, and for a fixed lane one of `word`: a changed
// word always changes the lane.
uint64_t mixed(uint64_t lane, uint64_t word) { return std::rotl(lane + word * P2, 31) * P1; }

uint64_t merged(uint64_t sum, uint64_t lane) { return (sum ^ mixed(0, lane)) * P1 + P4; }

}  // namespace

Xxh64::Xxh64() : lanes_{P1 + P2, P2, 0, -P1} {}

void Xxh64::add(Bytes bytes) {
  const unsigned char* at = bytes.data;
  int64_t left = bytes.size;
  if (left == 0) return;
  const int64_t begun = size_ % STRIPE;
  size_ += left;
  if (begun > 0) {
    const int64_t more = std::min(left, STRIPE - begun);
    std::memcpy(rest_ + begun, at, more);
    if (begun + more < STRIPE) return;
    add_stripes(rest_, STRIPE);
    at += more, left -= more;
  }
  const int64_t whole = left - left % STRIPE;
  add_stripes(at, whole);
  std::memcpy(rest_, at + whole, left - whole);
}

void Xxh64::add_stripes(const unsigned char* at, int64_t size) {
  auto [a, b, c, d] = lanes_;
  for (const unsigned char* end = at + size; at < end; at += STRIPE) {
    a = mixed(a, word_at<uint64_t>(at));
    b = mixed(b, word_at<uint64_t>(at + 8));
    c = mixed(c, word_at<uint64_t>(at + 16));
    d = mixed(d, word_at<uint64_t>(at + 24));
  }
  lanes_ = {a, b, c, d};
}

uint64_t Xxh64::value() const {
  uint64_t sum = P5;
  if (size_ >= STRIPE) {
    const auto& [a, b, c, d] = lanes_;
    sum = std::rotl(a, 1) + std::rotl(b, 7) + std::rotl(c, 12) + std::rotl(d, 18);
    for (const uint64_t lane : lanes_) sum = merged(sum, lane);
  }
  sum += static_cast<uint64_t>(size_);
  const unsigned char* at = rest_;
  int64_t left = size_ % STRIPE;
  for (; left >= 8; left -= 8, at += 8)
    sum = std::rotl(sum ^ mixed(0, word_at<uint64_t>(at)), 27) * P1 + P4;
  if (left >= 4) {
    sum = std::rotl(sum ^ (word_at<uint32_t>(at) * P1), 23) * P2 + P3;
    left -= 4, at += 4;
  }
  for (; left > 0; --left, ++at) sum = std::rotl(sum ^ (*at * P5), 11) * P1;
  sum = (sum ^ (sum >> 33)) * P2;
  sum = (sum ^ (sum >> 29)) * P3;
  return sum ^ (sum >> 32);
}

uint64_t xxh64(Bytes bytes) {
  Xxh64 sum;
  sum.add(bytes);
  return sum.value();
}

std::vector<uint64_t> xxh64_each(const std::vector<Bytes>& all, int threads) {
  std::vector<uint64_t> sums(all.size());
  parallel_for(static_cast<int64_t>(all.size()), threads,
               [&](int64_t i, int) { sums[i] = xxh64(all[i]); });
  return sums;
}

}  // namespace saefast
