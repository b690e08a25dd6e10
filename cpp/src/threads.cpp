#include "softq/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace softq {
namespace {

thread_local bool inside_call = false;  // of parallel_for: what is called from there runs inline
thread_local Interruptible* interruptible = nullptr;  // the call that this thread works for

constexpr int max_threads = 4096;
constexpr std::chrono::milliseconds ask_interval{50};

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int initial_threads() {
  for (const char* name : {"PYSOFTQ_NUM_THREADS", "OMP_NUM_THREADS"}) {
    // OMP_NUM_THREADS may be a list, one number a nesting level: the first one counts here.
    if (const char* text = std::getenv(name)) {
      const long count = std::strtol(text, nullptr, 10);
      if (count >= 1 && count <= max_threads) return static_cast<int>(count);
    }
  }
  return processors();
}

class Pool {
 public:
  explicit Pool(int threads) {
    workers_.reserve(static_cast<std::size_t>(threads) - 1);
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::exception&) {
      // The system gives no more threads or no memory for them: those there will do, results do not
      // depend on their number.
    }
  }

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void run(std::size_t tasks, const std::function<void(std::size_t)>& body) {
    // No more than there are tasks for: of hundreds of threads, each takes a while to wake.
    const std::size_t helpers = std::min(workers_.size(), tasks - 1);
    {
      const std::lock_guard lock(mutex_);
      body_ = &body;
      tasks_ = tasks;
      interruptible_ = interruptible;
      next_ = 0;
      wanted_ = helpers;
      failure_ = nullptr;
    }
    for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
    work();
    wait_for_workers();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  // Its exception ends the round: no further task begins.
  template <class Body>
  void attempt(const Body& body) {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = tasks_;
    }
  }

  void work() {
    for (std::size_t task = next_++; task < tasks_; task = next_++) {
      attempt([&] {
        check_interruption();
        (*body_)(task);
      });
    }
  }

  void wait_for_workers() {
    std::unique_lock lock(mutex_);
    wanted_ = 0;  // those that have not come yet would find nothing to do
    while (!done_.wait_for(lock, ask_interval, [this] { return busy_ == 0; })) {
      lock.unlock();
      attempt(check_interruption);
      lock.lock();
    }
  }

  void serve() {
    inside_call = true;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || wanted_ > 0; });
      if (stopping_) return;
      --wanted_;
      ++busy_;
      interruptible = interruptible_;
      lock.unlock();
      work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(std::size_t)>* body_ = nullptr;
  std::size_t tasks_ = 0;
  Interruptible* interruptible_ = nullptr;
  std::atomic<std::size_t> next_{0};
  std::size_t wanted_ = 0;  // workers that are still to join
  std::size_t busy_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
};

struct Inside {
  Inside() { inside_call = true; }
  ~Inside() { inside_call = false; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

std::mutex pool_mutex;  // held while a pool is in use or being replaced
Pool* pool = nullptr;   // never destroyed at exit: its threads may outlive static objects
std::atomic<int> wanted_threads{0};

#if defined(__unix__) || defined(__APPLE__)
// Threads do not survive a fork: a child must leave its parent's pool alone and make its own. Nor
// does whoever held the mutex.
void renew_pool() {
  pool = nullptr;
  new (&pool_mutex) std::mutex;
}
const int renewed_in_children = pthread_atfork(nullptr, nullptr, renew_pool);
#endif

}  // namespace

Interruptible::Interruptible(bool (*asked)())
    : asked_(asked),
      caller_(std::this_thread::get_id()),
      next_(std::chrono::steady_clock::now() + ask_interval),
      outer_(std::exchange(interruptible, this)) {}

Interruptible::~Interruptible() { interruptible = outer_; }

void Interruptible::check() {
  if (std::this_thread::get_id() == caller_) ask();
  if (interrupted_) throw Interrupted();
}

void Interruptible::ask() {
  const auto now = std::chrono::steady_clock::now();
  if (interrupted_ || now < next_) return;
  next_ = now + ask_interval;
  interrupted_ = asked_();
}

Uninterruptible::Uninterruptible() : outer_(std::exchange(interruptible, nullptr)) {}

Uninterruptible::~Uninterruptible() { interruptible = outer_; }

void check_interruption() {
  if (interruptible != nullptr) interruptible->check();
}

int num_threads() {
  int count = wanted_threads.load();
  if (count == 0) {
    const int initial = initial_threads();
    wanted_threads.compare_exchange_strong(count, initial);
    count = wanted_threads.load();
  }
  return count;
}

void set_num_threads(int count) {
  if (count < 1 || count > max_threads) {
    throw std::invalid_argument("the number of threads must be at least 1 and at most " +
                                std::to_string(max_threads) + ", got " + std::to_string(count));
  }
  if (inside_call) {  // a handler of a signal
    throw std::runtime_error("the number of threads cannot change while a call is using them");
  }
  const std::lock_guard lock(pool_mutex);
  wanted_threads = count;
  delete std::exchange(pool, nullptr);
}

void parallel_for(std::size_t tasks, const std::function<void(std::size_t)>& body) {
  const int threads = num_threads();
  if (tasks > 1 && threads > 1 && !inside_call) {
    const std::unique_lock lock(pool_mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      if (pool == nullptr) pool = new Pool(threads);
      const Inside inside;
      pool->run(tasks, body);
      return;
    }
  }
  for (std::size_t task = 0; task < tasks; ++task) {
    check_interruption();
    body(task);
  }
}

void parallel_chunks(std::size_t size, std::size_t length,
                     const std::function<void(std::size_t, std::size_t, std::size_t)>& body) {
  parallel_for((size + length - 1) / length, [&](std::size_t chunk) {
    const std::size_t begin = chunk * length;
    body(chunk, begin, std::min(begin + length, size));
  });
}

}  // namespace softq
