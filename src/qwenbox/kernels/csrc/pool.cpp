#include "pool.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

namespace qwenbox {
namespace {

constexpr uint64_t kOpen = uint64_t(1) << 31;
constexpr uint64_t kInside = kOpen - 1;
// bench/kernels.py builds the library without one of its parts, to see what it gains.
#ifdef QWENBOX_WITHOUT_SPINNING
constexpr int64_t kSpinNanoseconds = 0;
#else
constexpr int64_t kSpinNanoseconds = 50000;
#endif
#ifdef QWENBOX_WITHOUT_LONG_PIECES
constexpr bool kLongPieces = false;
#else
constexpr bool kLongPieces = true;
#endif

std::atomic<uint32_t> generation{0};  // counts the forks that led to this process

uint32_t current_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1); });
  (void)registered;
  return generation.load();
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as ready() holds, false after the spin time.
template <class Ready>
bool spin(const Ready& ready) {
  int64_t end = 0;
  for (;;) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
    const int64_t t = monotonic_nanoseconds();
    if (!end) end = t + kSpinNanoseconds;
    if (t >= end) return false;
  }
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

}  // namespace

int64_t monotonic_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

Pool::Pool(int threads) : threads_(threads), generation_(current_generation()) {
  if (threads < 1 || threads > 1024) throw std::runtime_error("threads must be between 1 and 1024, not " + std::to_string(threads));
  helpers_.reserve(threads - 1);
  starts_.reserve(threads - 1);
  sigset_t all, before;  // signals belong to the threads of the host program, but for a thread's own faults, which handlers report
  sigfillset(&all);
  for (int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  for (int i = 1; i < threads && !error; ++i) {
    starts_.push_back({this, i});
    pthread_t helper;
    error = pthread_create(&helper, nullptr, enter, &starts_.back());
    if (!error) helpers_.push_back(helper);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error) {
    stop();
    throw std::runtime_error("thread " + std::to_string(helpers_.size() + 2) + " of " + std::to_string(threads) + " could not be started");
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  if (generation_ != generation.load()) return;  // a forked child has no helpers to join
  stopping_.word = 1;
  bell_.word.fetch_add(1);
  futex_wake(bell_.word, threads_);
  for (pthread_t helper : helpers_) pthread_join(helper, nullptr);
}

void Pool::check() const {
  if (generation_ != generation.load())
    throw std::runtime_error(
        "this process is a fork of the one that started the runtime; its threads do not exist here: start a new runtime");
}

void Pool::publish(const Job& job) {
  job_ = job;
  next_.word.store(0, std::memory_order_relaxed);
  const uint64_t number = (state_.word.load(std::memory_order_relaxed) >> 32) + 1;
  state_.word.store(number << 32 | kOpen);
  bell_.word.fetch_add(1);
  if (sleepers_.word.load() > 0) futex_wake(bell_.word, threads_);
  work(0);
  state_.word.fetch_and(~kOpen);  // nobody joins from here on
  const auto alone = [&] { return (state_.word.load() & kInside) == 0; };
  while (!spin(alone)) {
    waiting_.word.store(1);
    if (alone()) break;
    futex_wait(waiting_.word, 1);
  }
  waiting_.word.store(0, std::memory_order_relaxed);
}

void Pool::work(int worker) {
  const Job job = job_;
  int64_t begin = next_.word.load();
  while (begin < job.count) {
    const int64_t left = job.count - begin, share = kLongPieces ? left / (2 * threads_) : 0, size = share > job.grain ? share : job.grain;
    const int64_t end = size < left ? begin + size : job.count;
    if (!next_.word.compare_exchange_weak(begin, end)) continue;
    job.call(job.body, worker, begin, end);
    begin = next_.word.load();
  }
}

void Pool::help(int worker) {
  uint64_t seen = 0;  // number of the last job this helper was in
  for (;;) {
    const uint32_t rung = bell_.word.load();
    if (stopping_.word.load()) return;
    uint64_t state = state_.word.load();
    if (!(state & kOpen) || state >> 32 == seen) {
      if (spin([&] { return bell_.word.load(std::memory_order_relaxed) != rung; })) continue;
      sleepers_.word.fetch_add(1);
      futex_wait(bell_.word, rung);
      sleepers_.word.fetch_sub(1);
      continue;
    }
    if (!state_.word.compare_exchange_weak(state, state + 1)) continue;
    seen = state >> 32;
    work(worker);
    // The caller waits on its own word only after it has seen a helper inside; the last one to leave a closed job wakes it.
    if ((state_.word.fetch_sub(1) & (kOpen | kInside)) == 1 && waiting_.word.exchange(0)) futex_wake(waiting_.word, 1);
  }
}

void* Pool::enter(void* start) {
  const Start& s = *static_cast<const Start*>(start);
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(0x1f80);  // round to nearest, denormals kept, no traps: the thread inherited what its creator had
#endif
  s.pool->help(s.worker);
  return nullptr;
}

}  // namespace qwenbox
