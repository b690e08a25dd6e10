// A pool of threads that share out numbered tasks. Which thread runs a task never changes a result.
#pragma once

#include <cstddef>
#include <functional>

namespace softq {

// PYSOFTQ_NUM_THREADS, else OMP_NUM_THREADS, else the processors this process may use.
int num_threads();

// Throws std::invalid_argument below 1 and above 4096.
void set_num_threads(int count);

// Runs body(0) … body(tasks - 1). Inside a task, and while another thread uses the pool, it runs
// inline. The first exception thrown by a task is rethrown once all have stopped.
void parallel_for(std::size_t tasks, const std::function<void(std::size_t)>& body);

// Splits [0, size) into chunks of a fixed length and calls body(chunk, begin, end) for each in
// parallel.
void parallel_chunks(std::size_t size, std::size_t length,
                     const std::function<void(std::size_t, std::size_t, std::size_t)>& body);

}  // namespace softq
