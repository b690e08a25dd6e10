#include "softq/assign.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>

#include "schedule.h"
#include "softq/threads.h"

namespace softq {
namespace {

// Finds the interval of a weight: bins of equal width tell how many ends are below all of it, and
// few of them hold an end.
class Finder {
 public:
  // For so many weights.
  void prepare(std::span<const float> ends, std::size_t weights) {
    ends_.assign(ends.begin(), ends.end());
    ends_.push_back(std::numeric_limits<float>::infinity());
    const auto finite = [](float end) { return std::isfinite(end); };
    const auto low = std::find_if(ends.begin(), ends.end(), finite);
    const auto high = std::find_if(ends.rbegin(), ends.rend(), finite);
    const std::size_t bins = std::bit_ceil(std::clamp(weights / 8, std::size_t{4}, most));
    low_ = low == ends.end() ? 0 : *low;
    inverse_ = low == ends.end() || !(*low < *high) ? 0 : static_cast<float>(bins) / (*high - *low);
    top_ = static_cast<float>(bins - 1);
    first_.assign(bins + 1, 0);
    for (const float end : ends) {
      if (end == std::numeric_limits<float>::infinity()) break;
      ++first_[finite(end) ? bin(end) + 1 : 0];
    }
    for (std::size_t b = 1; b <= bins; ++b) first_[b] += first_[b - 1];
  }

  struct View {
    const float* ends;
    const std::int32_t* first;
    float low, inverse, top;

    std::int32_t operator()(float x) const {
      std::int32_t k = first[Finder::bin(x, low, inverse, top)];
      while (ends[k] < x) ++k;
      return k;
    }
  };

  View view() const { return {ends_.data(), first_.data(), low_, inverse_, top_}; }

 private:
  static constexpr std::size_t most = 4096;

  // Does not fall where x rises, so that the ends in earlier bins are below x. NaN is in the first.
  static std::size_t bin(float x, float low, float inverse, float top) {
    const float place = (x - low) * inverse;
    const float inside = place > 0 ? place : 0;
    return static_cast<std::size_t>(static_cast<std::int32_t>(inside < top ? inside : top));
  }

  std::size_t bin(float x) const { return bin(x, low_, inverse_, top_); }

  std::vector<float> ends_;  // and infinity
  std::vector<std::int32_t> first_;
  float low_ = 0, inverse_ = 0, top_ = 0;
};

// Where the parabola `own` is first beaten by one of the later ones.
template <class T>
T first_crossing(const T* values, const T* offsets, std::size_t own, std::size_t width) {
  const T value = values[own] + T{0},
          offset = offsets[own];  // -0 would turn the sign of a quotient
  // Of equal values the cheaper one is the least everywhere: x / 0. On a tie, 0 / 0, the lower one.
  const auto crossing = [&](std::size_t k) {
    const T later = values[k] + T{0};
    return (offsets[k] - offset) / (later - value) + (later + value);
  };
  // NaN, of 0 / 0 and of infinite values, is never the least.
  constexpr std::size_t lanes = 8;  // minima side by side: compilers keep the order of one
  T least[lanes];
  std::fill_n(least, lanes, std::numeric_limits<T>::infinity());
  std::size_t k = own + 1;
  for (; k + lanes <= width; k += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const T found = crossing(k + lane);
      least[lane] = found < least[lane] ? found : least[lane];
    }
  }
  for (; k < width; ++k) {
    const T found = crossing(k);
    least[0] = found < least[0] ? found : least[0];
  }
  return *std::min_element(least, least + lanes) / 2;
}

// What is read and written for the weights of one segment.
template <class Item>
struct Rows {
  const float* weights;
  const std::uint8_t* kept;
  const std::int32_t* order;
  const Item* values;  // of the segment's clusters
  std::int32_t first;  // of them
  std::int32_t* clusters;
  Item* out;
};

// Four tables in turn: increments of one count would wait for each other.
constexpr std::size_t tables = 4;

template <bool some_kept, class Item>
void move(Rows<Item> rows, std::size_t begin, std::size_t end, Finder::View find,
          std::uint32_t* counts) {
  for (std::size_t i = begin; i < end; ++i) {
    std::int32_t local = rows.order[find(rows.weights[i])];
    if constexpr (some_kept) {
      if (rows.kept[i] != 0) local = rows.clusters[i] - rows.first;
    }
    ++counts[tables * static_cast<std::size_t>(local) + i % tables];
    rows.clusters[i] = rows.first + local;
    rows.out[i] = rows.values[local];
  }
}

template <class Item>
void move_segment(const Rows<Item>& rows, std::size_t size, std::span<const float> ends,
                  std::int64_t* counts) {
  thread_local Finder finder;
  thread_local std::vector<std::uint32_t> own;
  finder.prepare(ends, size);
  const Finder::View find = finder.view();
  std::mutex merging;
  const auto part = [&](std::size_t, std::size_t begin, std::size_t end) {
    own.assign(tables * (ends.size() + 1), 0);
    if (rows.kept == nullptr) move<false>(rows, begin, end, find, own.data());
    if (rows.kept != nullptr) move<true>(rows, begin, end, find, own.data());
    const std::lock_guard lock(merging);
    for (std::size_t k = 0; k < own.size(); ++k) {
      if (own[k] != 0) counts[k / tables] += own[k];
    }
  };
  if (size <= chunk_length) return part(0, 0, size);
  parallel_chunks(size, chunk_length, part);
}

template <class Item>
std::vector<std::int64_t> assign_all(const float* weights, const Intervals& intervals,
                                     const std::uint8_t* kept, const Item* values,
                                     std::size_t number, std::int32_t* clusters, Item* out) {
  const Uninterruptible writing;
  std::vector<std::int64_t> counts(number);
  const std::size_t width = intervals.width;
  const auto begin = [&](std::size_t s) { return static_cast<std::size_t>(intervals.edges[s]); };
  const auto size = [&](std::size_t s) { return begin(s + 1) - begin(s); };
  const Schedule schedule(intervals.first.size(), size, size);
  schedule.run([&](std::size_t s) {
    const auto first = static_cast<std::size_t>(intervals.first[s]);
    const Rows<Item> rows{weights + begin(s),
                          kept == nullptr ? nullptr : kept + begin(s),
                          intervals.order + s * width,
                          values + first,
                          static_cast<std::int32_t>(first),
                          clusters + begin(s),
                          out + begin(s)};
    move_segment(rows, size(s), {intervals.ends + s * (width - 1), width - 1},
                 counts.data() + first);
  });
  return counts;
}

}  // namespace

void cheapest_clusters(const SegmentClusters& clusters, float rd_weight, std::size_t width,
                       float* ends, std::int32_t* order) {
  const std::size_t segments = clusters.sizes.size();
  std::vector<float> values(width), offsets(width);
  std::fill_n(ends, segments * (width - 1), std::numeric_limits<float>::infinity());
  std::size_t first = 0;
  for (std::size_t s = 0; s < segments; ++s) {
    const auto size = static_cast<std::size_t>(clusters.sizes[s]);
    const std::span<const float> own = clusters.values.subspan(first, size);
    std::int32_t* row = order + s * width;
    std::iota(row, row + size, 0);
    const auto value = [&](std::int32_t k) { return own[static_cast<std::size_t>(k)]; };
    std::stable_sort(row, row + size, [&](std::int32_t a, std::int32_t b) {
      return value(a) < value(b) || (std::isnan(value(b)) && !std::isnan(value(a)));
    });
    for (std::size_t k = 0; k < size; ++k) {
      const auto place = first + static_cast<std::size_t>(row[k]);
      const auto count = static_cast<double>(std::max<std::int64_t>(clusters.counts[place], 1));
      const double share = static_cast<double>(clusters.weights[s]) / count;
      values[k] = clusters.values[place];
      offsets[k] = rd_weight * static_cast<float>(std::log2(share));
    }
    std::fill(row + size, row + width,
              static_cast<std::int32_t>(std::max(size, std::size_t{1}) - 1));
    if (size > 1) lower_envelope(values.data(), offsets.data(), 1, size, ends + s * (width - 1));
    first += size;
  }
}

template <class T>
void lower_envelope(const T* values, const T* offsets, std::size_t rows, std::size_t width,
                    T* ends) {
  const std::size_t each = width - 1;
  const std::size_t length = std::max(task_work / width, std::size_t{1});
  parallel_chunks(rows * each, length, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t row = i / each;
      const T* own = values + row * width;
      ends[i] = first_crossing(own, offsets + row * width, i % each, width);
    }
  });
  for (std::size_t row = 0; row < rows; ++row) {
    T* own = ends + row * each;
    for (std::size_t k = 1; k < each; ++k) own[k] = std::max(own[k - 1], own[k]);
  }
}

template void lower_envelope(const float*, const float*, std::size_t, std::size_t, float*);
template void lower_envelope(const double*, const double*, std::size_t, std::size_t, double*);

std::vector<std::int64_t> assign(const float* weights, const Intervals& intervals,
                                 const std::uint8_t* kept, std::span<const std::byte> values,
                                 std::size_t itemsize, std::int32_t* clusters, void* out) {
  const std::size_t number = values.size() / itemsize;
  const auto typed = [&]<class Item>(Item) {
    return assign_all(weights, intervals, kept, reinterpret_cast<const Item*>(values.data()),
                      number, clusters, static_cast<Item*>(out));
  };
  if (itemsize == 2) return typed(std::uint16_t{});
  return itemsize == 4 ? typed(std::uint32_t{}) : typed(std::uint64_t{});
}

}  // namespace softq
