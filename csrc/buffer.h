// A large uninitialised array, on huge pages if the system has them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace saefast {

// Memory of at least `bytes` bytes, aligned to a cache line. The largest buffer released so far, up
// to 256 MiB, is kept and reused; construction and destruction are thread-safe.
class Buffer {
 public:
  explicit Buffer(size_t bytes) {
    const std::lock_guard<std::mutex> lock(spare_lock());
    if (spare().bytes_ >= bytes) {
      std::swap(spare().data_, data_);
      std::swap(spare().bytes_, bytes_);
    } else {
      allocate(bytes);
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    // A fresh array costs page faults and cleared pages in every call, and if memory is fragmented,
    // the search for huge pages costs more than the encode. So one buffer is kept.
    constexpr size_t kMostKept = size_t{256} << 20;
    if (this != &spare() && bytes_ <= kMostKept) {
      const std::lock_guard<std::mutex> lock(spare_lock());
      if (spare().bytes_ < bytes_) {
        std::swap(spare().data_, data_);
        std::swap(spare().bytes_, bytes_);
      }
    }
    std::free(data_);
  }
  void* data() { return data_; }

 private:
  Buffer() = default;
  static Buffer& spare() {
    static Buffer* buffer = new Buffer();  // outlives every other static object
    return *buffer;
  }
  static std::mutex& spare_lock() {
    static std::mutex* lock = new std::mutex();
    return *lock;
  }
  void allocate(size_t bytes) {
    constexpr size_t kHugePage = size_t{1} << 21, kLine = 64;
    const size_t align = bytes >= kHugePage ? kHugePage : kLine;
    bytes_ = (bytes + align) / align * align;
    data_ = std::aligned_alloc(align, bytes_);
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (align == kHugePage) madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace saefast
