// Sorts weights: into buckets of nearly equal ones first, then each bucket by the bits of its
// weights, within a cache and in parallel.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "blocks.h"
#include "scratch.h"
#include "softq/binning.h"
#include "softq/density.h"
#include "softq/threads.h"

namespace softq {

// Unsigned integers that order as the finite weights do (-0 just below +0).
template <class T>
struct OrderedBits {
  using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  static constexpr int width = 8 * sizeof(T);

  // Without a branch: signs are as good as random.
  static Key encode(T x) {
    const auto bits = std::bit_cast<Key>(x);
    const auto negative =
        static_cast<Key>(static_cast<std::make_signed_t<Key>>(bits) >> (width - 1));
    return bits ^ (negative | Key{1} << (width - 1));
  }
  static T decode(Key key) {
    const Key sign = Key{1} << (width - 1);
    return std::bit_cast<T>((key & sign) != 0 ? key ^ sign : ~key);
  }
};

// A weight in an array to be sorted: alone, or with the place it came from.
template <class T>
struct Value {
  T value;
  Value() = default;
  Value(T x, std::size_t) : value(x) {}
};

template <class T>
struct Indexed {
  T value;
  std::uint32_t index;
  Indexed() = default;
  Indexed(T x, std::size_t i) : value(x), index(static_cast<std::uint32_t>(i)) {}
};

// Sorts one array after the other by way of one buffer, which stays in the thread's cache.
template <class Item>
class RadixSorter {
  using Bits = OrderedBits<decltype(Item::value)>;
  using Key = typename Bits::Key;
  static constexpr unsigned most_digit_bits = 11;
  static constexpr unsigned most_passes = (Bits::width + most_digit_bits - 1) / most_digit_bits;
  using Counts =
      std::array<std::array<std::uint32_t, std::size_t{1} << most_digit_bits>, most_passes>;

 public:
  // Stable.
  void sort(Item* items, std::size_t size) {
    if (size < 512) {
      std::stable_sort(items, items + size,
                       [](const Item& a, const Item& b) { return key(a) < key(b); });
      return;
    }
    reserve(size);
    const Item* sorted = sort_digits(items, buffer_.get(), size);
    if (sorted != items) std::copy_n(sorted, size, items);
  }

 private:
  static Key key(const Item& item) { return Bits::encode(item.value); }

  void reserve(std::size_t size) {
    if (size <= room_) return;
    room_ = 0;
    buffer_ = std::make_unique_for_overwrite<Item[]>(size);
    room_ = size;
  }

  // Least significant digit first; returns whichever of the two arrays holds the result.
  Item* sort_digits(Item* items, Item* buffer, std::size_t size) {
    // Only the bits in which the keys differ from the smallest.
    Key least = key(items[0]);
    Key most = least;
    for (std::size_t i = 1; i < size; ++i) {
      least = std::min(least, key(items[i]));
      most = std::max(most, key(items[i]));
    }
    const auto bits = static_cast<unsigned>(std::bit_width(most - least));
    const unsigned passes = (bits + most_digit_bits - 1) / most_digit_bits;
    if (passes == 0) return items;
    const unsigned digit_bits = (bits + passes - 1) / passes;
    const Key mask = (Key{1} << digit_bits) - 1;
    const auto digit = [&](const Item& item, unsigned pass) {
      return static_cast<std::size_t>((key(item) - least) >> (pass * digit_bits) & mask);
    };
    Counts& counts = *counts_;
    for (unsigned pass = 0; pass < passes; ++pass) counts[pass].fill(0);
    for (std::size_t i = 0; i < size; ++i) {
      for (unsigned pass = 0; pass < passes; ++pass) ++counts[pass][digit(items[i], pass)];
    }
    for (unsigned pass = 0; pass < passes; ++pass) {
      auto& places = counts[pass];
      std::uint32_t place = 0;
      for (auto& count : places) place += std::exchange(count, place);
      check_interruption();
      for (std::size_t i = 0; i < size; ++i) buffer[places[digit(items[i], pass)]++] = items[i];
      std::swap(items, buffer);
    }
    return items;
  }

  // On the heap: a thread's stack may be small.
  std::unique_ptr<Counts> counts_ = std::make_unique_for_overwrite<Counts>();
  std::unique_ptr<Item[]> buffer_;
  std::size_t room_ = 0;
};

// Takes items to their buckets. Lines are put together in the cache and written whole, past the
// cache: single writes to many places would each fetch a line from memory first.
template <class Item>
class Distributor {
  static constexpr std::size_t line = 64 / sizeof(Item);
  struct alignas(64) Line {
    Item items[line];
  };

 public:
  // places[b]: where in `out`, which is aligned to lines, this thread's items of bucket b begin.
  Distributor(Item* out, const std::vector<std::size_t>& places)
      : out_(out), first_(places), next_(places), lines_(places.size()) {}

  ~Distributor() {
    for (std::size_t b = 0; b < next_.size(); ++b) write_some(b, next_[b] / line * line, next_[b]);
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }

  void put(std::size_t bucket, Item item) {
    const std::size_t place = next_[bucket]++;
    lines_[bucket].items[place % line] = item;
    if (place % line < line - 1) return;
    const std::size_t begin = place + 1 - line;
    if (first_[bucket] <= begin) {
      write_line(out_ + begin, lines_[bucket]);
    } else {
      write_some(bucket, begin, place + 1);
    }
  }

 private:
  static void write_line(Item* to, const Line& from) {
#if defined(__SSE2__)
    for (std::size_t part = 0; part < 4; ++part) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + part,
                       _mm_load_si128(reinterpret_cast<const __m128i*>(&from) + part));
    }
#else
    std::memcpy(to, &from, sizeof(Line));
#endif
  }

  void write_some(std::size_t bucket, std::size_t begin, std::size_t end) {
    for (std::size_t i = std::max(begin, first_[bucket]); i < end; ++i) {
      out_[i] = lines_[bucket].items[i % line];
    }
  }

  Item* out_;
  std::vector<std::size_t> first_, next_;
  std::vector<Line> lines_;
};

inline constexpr std::size_t bucket_length = std::size_t{1} << 13;  // on average
inline constexpr std::size_t most_buckets = 2048;

// Of the parts that are distributed: each has a table of all buckets, but is done in a tenth of a
// second.
inline constexpr std::size_t least_length = bucket_length;
inline constexpr std::size_t most_length = std::size_t{1} << 24;

// Puts the items into `out` from `start` on, in the order of their buckets; returns where these
// begin and, last, where they end. item(i) is called from several threads.
template <class Item, class T, class ItemAt>
std::vector<std::size_t> distribute(const ItemAt& item, std::size_t size, const Binning<T>& buckets,
                                    Item* out, std::size_t start) {
  const auto count = static_cast<std::size_t>(buckets.bins);
  const auto threads = static_cast<std::size_t>(num_threads());
  const std::size_t length = std::clamp((size + threads - 1) / threads, least_length, most_length);
  std::vector<std::vector<std::size_t>> places((size + length - 1) / length);
  parallel_chunks(size, length, [&](std::size_t part, std::size_t begin, std::size_t end) {
    std::vector<Count> counts(count + spare_slots);
    T block[block_length];
    for (std::size_t first = begin; first < end; first += block_length) {
      const std::size_t here = std::min(block_length, end - first);
      for (std::size_t i = 0; i < here; ++i) block[i] = item(first + i).value;
      tally(block, 0, here, buckets, Sample(), counts.data());
    }
    places[part].assign(counts.begin(), counts.end() - spare_slots);
  });
  // Counts become the places where each part's items of a bucket begin.
  std::vector<std::size_t> begins;
  std::size_t place = start;
  for (std::size_t b = 0; b < count; ++b) {
    begins.push_back(place);
    for (auto& part : places) place += std::exchange(part[b], place);
  }
  begins.push_back(place);
  parallel_chunks(size, length, [&](std::size_t part, std::size_t begin, std::size_t end) {
    Distributor<Item> to(out, places[part]);
    for (std::size_t i = begin; i < end; ++i) {
      const Item one = item(i);
      to.put(static_cast<std::size_t>(buckets.index(one.value)), one);
    }
  });
  return begins;
}

// Weights in ascending order, with an infinite one before the first and behind the last. Takes one
// array of items; while it sorts, another as large at most.
template <class Item>
class Sorted {
  using T = decltype(Item::value);
  static constexpr std::size_t margin = 64 / sizeof(Item);
  static constexpr std::size_t cached = std::size_t{1} << 18;  // items that a cache holds, twice

 public:
  Sorted(const T* theta, std::size_t size, const Extent<T>& range)
      : memory_(allocate_lines<Item>(size + 2 * margin)), items_(memory_.get() + margin) {
    const auto item = [theta](std::size_t i) { return Item(theta[i], i); };
    if (size * sizeof(Item) * static_cast<std::size_t>(num_threads()) < std::size_t{1} << 22) {
      for (std::size_t i = 0; i < size; ++i) items_[i] = item(i);
      sort_each({{0, size}});
    } else {
      sort_buckets(item, size, range);
    }
    items_[-1] = Item(-std::numeric_limits<T>::infinity(), 0);
    items_[size] = Item(std::numeric_limits<T>::infinity(), 0);
  }

  // Readable from -1 to size.
  const Item* items() const { return items_; }

 private:
  template <class ItemAt>
  void sort_buckets(const ItemAt& item, std::size_t size, const Extent<T>& range) {
    std::vector<std::pair<std::size_t, std::size_t>> buckets;
    const auto add = [&](const std::vector<std::size_t>& begins) {
      for (std::size_t b = 0; b + 1 < begins.size(); ++b) {
        buckets.emplace_back(begins[b], begins[b + 1] - begins[b]);
      }
    };
    add(distribute(item, size, buckets_for(range, size), items_, 0));
    // Clusters crowd into few buckets: these are split once more.
    const auto crowded = std::partition(buckets.begin(), buckets.end(),
                                        [](const auto& bucket) { return bucket.second <= cached; });
    const std::vector<std::pair<std::size_t, std::size_t>> again(crowded, buckets.end());
    buckets.erase(crowded, buckets.end());
    for (const auto& [begin, count] : again) {
      const auto copy = allocate_lines<Item>(count);
      std::copy_n(items_ + begin, count, copy.get());
      const auto [low, high] = std::minmax_element(
          copy.get(), copy.get() + count,
          [](const Item& one, const Item& other) { return one.value < other.value; });
      const Extent<T> inner{low->value, high->value, 0};
      add(distribute([&](std::size_t i) { return copy[i]; }, count, buckets_for(inner, count),
                     items_, begin));
    }
    sort_each(buckets);
  }

  // One for all where the range is infinite in T.
  static Binning<T> buckets_for(const Extent<T>& range, std::size_t size) {
    const bool finite = range.high - range.low <= std::numeric_limits<T>::max();
    const std::size_t count = std::clamp(size / bucket_length, std::size_t{1}, most_buckets);
    return finite ? Binning<T>(range.low, range.high, static_cast<std::int32_t>(count))
                  : Binning<T>(range.low, range.low, 1);
  }

  void sort_each(const std::vector<std::pair<std::size_t, std::size_t>>& buckets) {
    std::atomic<std::size_t> next{0};
    parallel_for(std::min(static_cast<std::size_t>(num_threads()), buckets.size()),
                 [&](std::size_t) {
                   RadixSorter<Item> sorter;
                   for (std::size_t b = next++; b < buckets.size(); b = next++) {
                     check_interruption();
                     sorter.sort(items_ + buckets[b].first, buckets[b].second);
                   }
                 });
  }

  Lines<Item> memory_;
  Item* items_;
};

}  // namespace softq
