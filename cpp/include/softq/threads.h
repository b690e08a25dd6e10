// A pool of threads that share out numbered tasks. Which thread runs a task never changes a result.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <thread>

namespace softq {

// PYSOFTQ_NUM_THREADS, else OMP_NUM_THREADS, else the processors this process may use.
int num_threads();

// Throws std::invalid_argument below 1 and above 4096, std::runtime_error from within a call that
// uses the threads. Waits for the calls of other threads.
void set_num_threads(int count);

// Runs body(0) … body(tasks - 1). Inside a task, and while another thread uses the pool, it runs
// inline. The first exception thrown by a task is rethrown once all have stopped.
void parallel_for(std::size_t tasks, const std::function<void(std::size_t)>& body);

// Splits [0, size) into chunks of a fixed length and calls body(chunk, begin, end) for each in
// parallel.
void parallel_chunks(std::size_t size, std::size_t length,
                     const std::function<void(std::size_t, std::size_t, std::size_t)>& body);

// Thrown by a call that was interrupted; its results are incomplete.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// While it exists, calls that this thread makes can be interrupted: between pieces of the work,
// about 20 times a second, the thread calls `asked`, and once that returns true the call throws
// Interrupted. `asked` may itself call the core.
class Interruptible {
 public:
  explicit Interruptible(bool (*asked)());
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  // Throws Interrupted if the call is interrupted. Called by every thread that works for it.
  void check();

 private:
  void ask();

  bool (*asked_)();
  std::thread::id caller_;
  std::chrono::steady_clock::time_point next_;  // the caller's
  std::atomic<bool> interrupted_{false};
  Interruptible* outer_;
};

// While it exists, calls that this thread makes cannot be interrupted.
class Uninterruptible {
 public:
  Uninterruptible();
  ~Uninterruptible();
  Uninterruptible(const Uninterruptible&) = delete;
  Uninterruptible& operator=(const Uninterruptible&) = delete;

 private:
  Interruptible* outer_;
};

// Throws Interrupted if the call that this thread works for is interrupted. parallel_for checks
// before each task; tasks that may take longer than some hundredths of a second call it themselves,
// at places where no memory that the thread keeps is in use.
void check_interruption();

}  // namespace softq
