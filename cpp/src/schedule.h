// Shares layers, or segments of layers, out between the threads.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "softq/threads.h"

namespace softq {

inline constexpr std::size_t chunk_length = std::size_t{1} << 18;  // of what several threads share
inline constexpr std::size_t task_work = std::size_t{1} << 14;     // weights and bins

// Parts above the chunk length are themselves split between the threads, one after the other; the
// others are shared out whole, so many at a time that a task outweighs its overhead.
class Schedule {
 public:
  // size(part) is the number of weights, work(part) that of weights and bins.
  template <class Size, class Work>
  Schedule(std::size_t parts, const Size& size, const Work& work) {
    std::size_t done = task_work;
    for (std::size_t part = 0; part < parts; ++part) {
      if (size(part) > chunk_length) {
        large_.push_back(part);
        done = task_work;
        continue;
      }
      if (done >= task_work) {
        tasks_.emplace_back(part, part);
        done = 0;
      }
      tasks_.back().second = part + 1;
      done += work(part);
    }
  }

  // Calls body(part) for each.
  template <class Body>
  void run(const Body& body) const {
    for (const std::size_t part : large_) body(part);
    parallel_for(tasks_.size(), [&](std::size_t task) {
      const auto [begin, end] = tasks_[task];
      for (std::size_t part = begin; part < end; ++part) body(part);
    });
  }

 private:
  std::vector<std::size_t> large_;
  std::vector<std::pair<std::size_t, std::size_t>> tasks_;
};

}  // namespace softq
