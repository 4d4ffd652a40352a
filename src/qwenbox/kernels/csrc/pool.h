// A pool of threads that stays between calls. The caller is worker 0. Work is claimed piece by piece, so a helper that the system has
// taken off its processor costs at most the piece it holds: a job ends when all pieces are done and every helper that joined has left.
#pragma once
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace qwenbox {

int64_t monotonic_nanoseconds();  // of CLOCK_MONOTONIC

class Pool {
 public:
  explicit Pool(int threads);  // throws std::runtime_error if a thread cannot be started
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  void check() const;  // throws in a forked child, where the helpers do not exist

  // body(worker, begin, end) over [0, count): long pieces first, so that each worker reads on where it is, then ever shorter ones down to
  // `grain`, so that all end together. body must not throw. One caller at a time.
  template <class Body>
  void run(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    if (threads_ == 1 || count <= grain) return body(0, 0, count);
    Job job{[](const void* b, int worker, int64_t begin, int64_t end) { (*static_cast<const Body*>(b))(worker, begin, end); }, &body, count,
            grain};
    publish(job);
  }

 private:
  struct Job {
    void (*call)(const void* body, int worker, int64_t begin, int64_t end);
    const void* body;
    int64_t count, grain;
  };
  template <class T>
  struct alignas(128) Line {  // two cache lines: the adjacent-line prefetcher pairs them
    std::atomic<T> word{0};
  };
  struct Start {
    Pool* pool;
    int worker;
  };

  void stop();
  void publish(const Job& job);
  void work(int worker);
  void help(int worker);
  static void* enter(void* start);

  const int threads_;
  const uint32_t generation_;
  std::vector<pthread_t> helpers_;
  std::vector<Start> starts_;
  alignas(128) Job job_{};
  Line<int64_t> next_;      // first unclaimed index of the job
  Line<uint64_t> state_;    // job number << 32 | open << 31 | helpers inside
  Line<uint32_t> bell_;     // futex of the helpers, rung for each job
  Line<int32_t> sleepers_;  // helpers that wait on the bell
  Line<uint32_t> waiting_;  // futex of the caller: 1 while it waits for the last helper to leave
  Line<uint32_t> stopping_;
};

}  // namespace qwenbox
