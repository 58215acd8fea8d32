// Loops over tasks on the OpenMP pool that torch uses.
//
// The assignment of tasks to threads is not fixed, so a task may write only memory that no other
// task writes. This makes every result independent of the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace saefast {

// Calls body(task, worker) for every task in [0, tasks), with worker in [0, threads). Rethrows the
// first exception; tasks that have not started are then skipped.
template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  const int workers = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#if defined(_OPENMP) || defined(__SANITIZE_THREAD__)
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto run = [&](int64_t task, int worker) {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      body(task, worker);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see the barriers of libgomp, and would report every loop as a race.
  // Every thread has tasks, however short they are: otherwise the first one may finish them all.
  std::vector<std::thread> pool;
  for (int worker = 0; worker < workers; ++worker)
    pool.emplace_back([&, worker] {
      for (int64_t task = worker; task < tasks; task += workers) run(task, worker);
    });
  for (std::thread& thread : pool) thread.join();
#else
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
  for (int64_t task = 0; task < tasks; ++task) run(task, omp_get_thread_num());
#endif
  if (failure) std::rethrow_exception(failure);
#else
  for (int64_t task = 0; task < tasks; ++task) body(task, 0);
#endif
}

// The lowest index that any thread has reported; independent of the order of reports.
class Lowest {
 public:
  void report(int64_t index) {
    int64_t seen = value_.load();
    while (index < seen && !value_.compare_exchange_weak(seen, index)) {
    }
  }
  bool any() const { return value_.load() != INT64_MAX; }
  int64_t value() const { return value_.load(); }

 private:
  std::atomic<int64_t> value_{INT64_MAX};
};

}  // namespace saefast
