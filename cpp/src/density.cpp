#include "softq/density.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <type_traits>

#include "blocks.h"
#include "softq/half.h"
#include "softq/threads.h"

namespace softq {
namespace {

constexpr std::size_t chunk_length = std::size_t{1} << 18;
constexpr std::size_t max_weights =
    std::numeric_limits<std::int32_t>::max();  // differences of counts are int32
constexpr std::size_t one_table_length = 4096;

}  // namespace

template <class Storage, class T>
Extent<T> extent(const Storage* theta, std::size_t size) {
  if (size == 0) return {0, 0, 0};
  const auto& set = kernels().weights<T>();
  std::vector<Extent<T>> parts((size + chunk_length - 1) / chunk_length);
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    Extent<T> part{};
    bool first = true;
    for_blocks<T>(theta, begin, end, [&](const T* block, std::size_t, std::size_t count) {
      const Extent<T> next = set.extent(block, count);
      part = first ? next
                   : Extent<T>{std::min(part.low, next.low), std::max(part.high, next.high),
                               part.nonfinite + next.nonfinite};
      first = false;
    });
    parts[chunk] = part;
  });
  Extent<T> whole = parts.front();
  for (auto part = parts.begin() + 1; part != parts.end(); ++part) {
    whole = {std::min(whole.low, part->low), std::max(whole.high, part->high),
             whole.nonfinite + part->nonfinite};
  }
  return whole;
}

template <class T>
Binning<T> make_binning(const Extent<T>& extent, std::size_t size, std::int32_t bins) {
  if (size > max_weights) {
    throw std::invalid_argument("a binned layer has at most " + std::to_string(max_weights) +
                                " weights, not " + std::to_string(size));
  }
  if (extent.nonfinite > 0) {
    throw std::invalid_argument(std::to_string(extent.nonfinite) + " of " + std::to_string(size) +
                                " weights are not finite (NaN or inf)");
  }
  if (!std::isfinite(extent.high - extent.low)) {
    throw std::invalid_argument("the range of the weights, " + std::to_string(extent.low) + " to " +
                                std::to_string(extent.high) + ", is wider than float" +
                                std::to_string(8 * sizeof(T)) + " can hold");
  }
  return Binning<T>(extent.low, extent.high, bins);
}

template <class Storage, class T>
void histogram(const Storage* theta, std::size_t size, const Binning<T>& binning,
               const Sample& sample, Count* counts) {
  const auto& set = kernels();
  const auto bins = static_cast<std::size_t>(binning.bins);
  std::fill_n(counts, bins, Count{0});
  const std::size_t length = std::max(chunk_length, 16 * bins);
  std::mutex merging;
  parallel_chunks(size, length, [&](std::size_t, std::size_t begin, std::size_t end) {
    // Two tables, used in turn: weights of one cluster do not wait for each other's increments.
    // They are all zero between calls. A single chunk counts into the result itself, and a short
    // one has nothing to wait for that would be worth merging a second table.
    thread_local std::vector<Count> tables;
    if (tables.size() < 2 * bins) tables.resize(2 * bins, 0);
    Count* even = size <= length ? counts : tables.data();
    Count* odd = size <= one_table_length ? even : tables.data() + bins;
    std::int32_t index[block_length];
    std::uint32_t keep[block_length];
    for_blocks<T>(theta, begin, end, [&](const T* block, std::size_t first, std::size_t count) {
      set.weights<T>().index(block, count, binning, index);
      std::size_t i = 0;
      if (sample.whole()) {
        for (; i + 2 <= count; i += 2) {
          ++even[index[i]];
          ++odd[index[i + 1]];
        }
        if (i < count) ++even[index[i]];
      } else {
        set.keep(sample, first, count, keep);
        for (; i + 2 <= count; i += 2) {
          even[index[i]] += keep[i];
          odd[index[i + 1]] += keep[i + 1];
        }
        if (i < count) even[index[i]] += keep[i];
      }
    });
    const std::lock_guard lock(merging);
    for (Count* table : {even, odd}) {
      if (table == counts) continue;
      for (std::size_t k = 0; k < bins; ++k) counts[k] += table[k];
      std::fill_n(table, bins, Count{0});
    }
  });
}

#define SOFTQ_INSTANTIATE(Storage, T)                                                 \
  template Extent<T> extent<Storage, T>(const Storage*, std::size_t);                 \
  template void histogram<Storage, T>(const Storage*, std::size_t, const Binning<T>&, \
                                      const Sample&, Count*);
SOFTQ_INSTANTIATE(float, float)
SOFTQ_INSTANTIATE(double, double)
SOFTQ_INSTANTIATE(Half, float)
SOFTQ_INSTANTIATE(BFloat16, float)
template Binning<float> make_binning(const Extent<float>&, std::size_t, std::int32_t);
template Binning<double> make_binning(const Extent<double>&, std::size_t, std::int32_t);

}  // namespace softq
