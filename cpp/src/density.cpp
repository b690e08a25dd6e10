#include "softq/density.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <sstream>
#include <type_traits>

#include "blocks.h"
#include "schedule.h"
#include "scratch.h"
#include "softq/checks.h"
#include "softq/half.h"
#include "softq/threads.h"

namespace softq {
namespace {

// 16-bit counters hold that many weights.
constexpr std::size_t narrow_length = (std::size_t{1} << 16) - block_length;
constexpr std::size_t narrow_bins = std::size_t{1} << 14;

// counts += the sampled weights of [begin, end) in each bin, by way of tables of type C.
template <class C, class Storage, class T>
void add_counts(const Storage* theta, std::size_t begin, std::size_t end, const Binning<T>& binning,
                const Draw& draw, Count* counts) {
  thread_local Scratch<C> scratch;
  const auto bins = static_cast<std::size_t>(binning.bins);
  C* table = scratch.reserve(bins + spare_slots);
  const std::size_t length = sizeof(C) == 2 ? narrow_length : end - begin;
  for (; begin < end; begin += length) {
    const auto add = [&](std::size_t from, std::size_t to, const Sample& sample) {
      tally(theta, from, to, binning, sample, table);
    };
    draw.for_runs(begin, std::min(begin + length, end), add);
    kernels().counts<C>().add(table, bins, counts);
    std::fill_n(table, bins + spare_slots, C{0});
  }
}

template <class T>
Extent<T> merged(const Extent<T>& a, const Extent<T>& b) {
  return {std::min(a.low, b.low), std::max(a.high, b.high), a.nonfinite + b.nonfinite};
}

// On this thread, of one weight or more.
template <class T, class Storage>
Extent<T> extent_of(const Storage* theta, std::size_t begin, std::size_t end) {
  const auto& set = kernels().weights<T>();
  Extent<T> whole{};
  for_blocks<T>(theta, begin, end, T{1}, [&](const T* block, std::size_t first, std::size_t size) {
    const Extent<T> next = set.extent(block, size);
    whole = first == begin ? next : merged(whole, next);
  });
  return whole;
}

}  // namespace

template <class Storage, class T>
Extent<T> extent(const Storage* theta, std::size_t size) {
  if (size == 0) return {0, 0, 0};
  if (size <= chunk_length) return extent_of<T>(theta, 0, size);
  std::vector<Extent<T>> parts((size + chunk_length - 1) / chunk_length);
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    parts[chunk] = extent_of<T>(theta, begin, end);
  });
  Extent<T> whole = parts.front();
  for (auto part = parts.begin() + 1; part != parts.end(); ++part) whole = merged(whole, *part);
  return whole;
}

template <class T>
Binning<T> make_binning(const Extent<T>& extent, std::size_t size, std::int32_t bins) {
  check_size(size);
  check_finite(static_cast<std::uint64_t>(extent.nonfinite), size);
  if (!std::isfinite(extent.high - extent.low)) {
    std::ostringstream message;
    message << "the range of the weights, " << extent.low << " to " << extent.high
            << ", is wider than float" << 8 * sizeof(T) << " can hold";
    throw std::invalid_argument(message.str());
  }
  return Binning<T>(extent.low, extent.high, bins);
}

template <class C, class Storage, class T>
void tally(const Storage* theta, std::size_t begin, std::size_t end, const Binning<T>& binning,
           const Sample& sample, C* counts) {
  const auto& set = kernels().weights<T>();
  const auto count = [&](const T* block, std::size_t first, std::size_t size) {
    // Where one bin holds most of a block, increments would wait for each other: its weights are
    // counted at once.
    const std::int32_t crowded = binning.index_of_product(block[size / 2]);
    std::int32_t slot[block_length];
    const std::uint32_t inside = set.slots(block, size, binning, sample, first, crowded, slot);
    counts[crowded] = static_cast<C>(counts[crowded] + inside);
    for (std::size_t i = 0; i < size; ++i) ++counts[slot[i]];
  };
  for_blocks<T>(theta, begin, end, binning.factor, count);
}

template <class Storage, class T>
void histogram(const Storage* theta, std::size_t size, const Binning<T>& binning, const Draw& draw,
               Count* counts) {
  const auto bins = static_cast<std::size_t>(binning.bins);
  const auto add =
      bins <= narrow_bins ? add_counts<std::uint16_t, Storage, T> : add_counts<Count, Storage, T>;
  std::fill_n(counts, bins, Count{0});
  // Long enough for the counting to outweigh the tables.
  const std::size_t length =
      std::max({chunk_length, 16 * bins, size / (8 * static_cast<std::size_t>(num_threads()))});
  if (size <= length) return add(theta, 0, size, binning, draw, counts);
  std::mutex merging;
  parallel_chunks(size, length, [&](std::size_t, std::size_t begin, std::size_t end) {
    thread_local Scratch<Count> scratch;
    Count* part = scratch.reserve(bins);
    add(theta, begin, end, binning, draw, part);
    const std::lock_guard lock(merging);
    kernels().counts<Count>().add(part, bins, counts);
    std::fill_n(part, bins, Count{0});
  });
}

#define SOFTQ_INSTANTIATE(Storage, T)                                                              \
  template Extent<T> extent<Storage, T>(const Storage*, std::size_t);                              \
  template void histogram<Storage, T>(const Storage*, std::size_t, const Binning<T>&, const Draw&, \
                                      Count*);                                                     \
  template void tally(const Storage*, std::size_t, std::size_t, const Binning<T>&, const Sample&,  \
                      std::uint16_t*);                                                             \
  template void tally(const Storage*, std::size_t, std::size_t, const Binning<T>&, const Sample&,  \
                      Count*);
SOFTQ_INSTANTIATE(float, float)
SOFTQ_INSTANTIATE(double, double)
SOFTQ_INSTANTIATE(Half, float)
SOFTQ_INSTANTIATE(BFloat16, float)
template Binning<float> make_binning(const Extent<float>&, std::size_t, std::int32_t);
template Binning<double> make_binning(const Extent<double>&, std::size_t, std::int32_t);

}  // namespace softq
