// Checksums of bytes: XXH64 with seed 0, as https://xxhash.com defines it.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace saefast {

// Bytes that are read.
struct Bytes {
  const unsigned char* data;
  int64_t size;
};

// The checksum of bytes that come in pieces.
class Xxh64 {
 public:
  static constexpr int64_t STRIPE = 32;

  Xxh64();
  void add(Bytes bytes);
  // Returns the checksum of all bytes so far.
  uint64_t value() const;

 private:
  void add_stripes(const unsigned char* at, int64_t size);

  std::array<uint64_t, 4> lanes_;
  unsigned char rest_[STRIPE] = {};  // bytes after the last whole stripe
  int64_t size_ = 0;
};

// Returns the checksum of the bytes.
uint64_t xxh64(Bytes bytes);

// Returns the checksum of each element, computed by several threads.
std::vector<uint64_t> xxh64_each(const std::vector<Bytes>& all, int threads);

}  // namespace saefast
