#include "softq/sums.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <stdexcept>

#include "schedule.h"
#include "softq/threads.h"

namespace softq {
namespace {

// Four tables in turn: additions to one sum would wait for each other.
constexpr std::size_t tables = 4;

// Of |x| <= 2^51: the last bit of the sum is that of 1, so that the addition rounds.
std::int64_t rounded(double x) {
  constexpr double shift = 0x1.8p52;
  return std::bit_cast<std::int64_t>(x + shift) - std::bit_cast<std::int64_t>(shift);
}

template <class Storage, class T>
void add(const Storage* gradients, const std::int32_t* clusters, std::size_t size, double scale,
         std::int32_t first, std::int64_t* sums) {
  for (std::size_t i = 0; i < size; ++i) {
    const double scaled = static_cast<double>(static_cast<T>(gradients[i])) * scale;
    sums[tables * static_cast<std::size_t>(clusters[i] - first) + i % tables] += rounded(scaled);
  }
}

}  // namespace

std::vector<std::int64_t> sum_by_cluster(const void* gradients, Scalar scalar,
                                         const std::int32_t* clusters, std::size_t size,
                                         std::size_t number, double scale) {
  std::vector<std::int64_t> sums(number);
  std::mutex merging;
  // Long enough for the additions to outweigh the merging.
  const std::size_t share = size / (4 * static_cast<std::size_t>(num_threads()));
  parallel_chunks(size, std::max(chunk_length, share),
                  [&](std::size_t, std::size_t begin, std::size_t end) {
                    // A chunk meets few segments, hence only a range of the clusters.
                    std::int32_t first = clusters[begin];
                    std::int32_t last = first;
                    for (std::size_t i = begin; i < end; ++i) {
                      first = std::min(first, clusters[i]);
                      last = std::max(last, clusters[i]);
                    }
                    if (first < 0 || static_cast<std::size_t>(last) >= number)
                      throw std::invalid_argument("there is no such cluster");
                    const auto count = static_cast<std::size_t>(last - first) + 1;
                    thread_local std::vector<std::int64_t> own;
                    own.assign(tables * count, 0);
                    with_storage(scalar, [&]<class Storage, class T>(Storage, T) {
                      add<Storage, T>(static_cast<const Storage*>(gradients) + begin,
                                      clusters + begin, end - begin, scale, first, own.data());
                    });
                    const std::lock_guard lock(merging);
                    for (std::size_t k = 0; k < own.size(); ++k)
                      sums[static_cast<std::size_t>(first) + k / tables] += own[k];
                  });
  return sums;
}

}  // namespace softq
