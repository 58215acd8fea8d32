// Checksums of bytes: XXH64 with seed 0, as https://xxhash.com defines it.
#pragma once
#include <cstdint>
#include <vector>

namespace saefast {

// Bytes that are read.
struct Bytes {
  const unsigned char* data;
  int64_t size;
};

// Returns the checksum of the bytes.
uint64_t xxh64(Bytes bytes);

// Returns the checksum of each element, computed by several threads.
std::vector<uint64_t> xxh64_each(const std::vector<Bytes>& all, int threads);

}  // namespace saefast
