#include "softq/distinct.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#include "each_segment.h"
#include "schedule.h"
#include "softq/sampling.h"
#include "softq/threads.h"
#include "sort.h"

namespace softq {
namespace {

constexpr std::size_t few_values = 256;

template <std::size_t bytes>
using BitsOf = std::conditional_t<bytes == 2, std::uint16_t,
                                  std::conditional_t<bytes == 4, std::uint32_t, std::uint64_t>>;

// Orders as the values do: all bits of negative ones but the sign are flipped.
template <class Bits>
auto ordered(Bits bits) {
  using Signed = std::make_signed_t<Bits>;
  const auto value = static_cast<Signed>(bits);
  constexpr auto magnitude = std::numeric_limits<Signed>::max();
  return static_cast<Signed>(value < 0 ? value ^ magnitude : value);
}

template <class Bits>
void sort_values(std::vector<Bits>& values) {
  constexpr std::size_t few = 1024;
  if constexpr (sizeof(Bits) > 2) {
    using T = std::conditional_t<sizeof(Bits) == 4, float, double>;
    static_assert(sizeof(Value<T>) == sizeof(Bits));
    if (values.size() > few) {
      std::vector<Value<T>> items;
      items.reserve(values.size());
      for (const Bits value : values) items.emplace_back(std::bit_cast<T>(value), 0);
      RadixSorter<Value<T>>().sort(items.data(), items.size());
      std::memcpy(values.data(), items.data(), values.size() * sizeof(Bits));
      return;
    }
  }
  using Signed = std::make_signed_t<Bits>;
  const auto flip = [](Bits bits) { return static_cast<Bits>(ordered(bits)); };  // and back
  std::transform(values.begin(), values.end(), values.begin(), flip);
  std::sort(values.begin(), values.end(),
            [](Bits a, Bits b) { return static_cast<Signed>(a) < static_cast<Signed>(b); });
  std::transform(values.begin(), values.end(), values.begin(), flip);
}

template <class Bits>
std::size_t place_of(Bits value, std::uint64_t factor, int shift) {
  return static_cast<std::size_t>((value * factor) >> shift);
}

// From values to their numbers, in the order of insertion: a hash table with linear probing, at
// most an eighth full, or a quarter where there are many values, so that most look-ups end at the
// first place and the table stays in a cache. Once there are 2^16 places, each value of 16 bits has
// its own.
template <class Bits>
class Numbers {
 public:
  Numbers() { clear(0); }

  // Empties the table; so many values are expected.
  void clear(std::size_t expected) {
    values_.clear();
    resize(static_cast<int>(std::bit_width(places_for(std::max(expected, std::size_t{2})) - 1)));
  }

  const std::vector<Bits>& values() const { return values_; }

  // The number of a value; none if it has not been inserted.
  std::int32_t find(Bits value) const {
    for (std::size_t place = home(value);; place = (place + 1) & mask_) {
      const Place& found = places_[place];
      if (found.value == value || found.number == none) return found.number;
    }
  }

  // Its number from now on.
  std::int32_t insert(Bits value) {
    std::size_t place = home(value);
    for (; places_[place].number != none; place = (place + 1) & mask_) {
      if (places_[place].value == value) return places_[place].number;
    }
    if (places_for(values_.size() + 1) > places_.size()) {
      resize(std::countr_zero(places_.size()) + 1);
      return insert(value);
    }
    values_.push_back(value);
    const auto number = static_cast<std::int32_t>(values_.size() - 1);
    places_[place] = {value, number};
    return number;
  }

  static constexpr std::int32_t none = -1;

 private:
  // Of the golden ratio, multiples of one number, which clusters often are, would meet more often.
  static constexpr std::uint64_t factor = 0xD6E8FEB86659FD93U;

  struct Place {
    Bits value;
    std::int32_t number;
  };

  static constexpr std::size_t patterns = std::size_t{1} << 16;  // of 16 bits

  static std::size_t places_for(std::size_t values) {
    constexpr std::size_t many = std::size_t{1} << 12;
    const std::size_t places = (values > many ? 4 : 8) * values;
    return sizeof(Bits) == 2 ? std::min(places, patterns) : places;
  }

  std::size_t home(Bits value) const {
    if (sizeof(Bits) == 2 && places_.size() == patterns) return value;
    return place_of(value, factor, shift_);
  }

  void resize(int log_size) {
    places_.assign(std::size_t{1} << log_size, Place{0, none});
    shift_ = 64 - log_size;
    mask_ = places_.size() - 1;
    for (std::size_t number = 0; number < values_.size(); ++number) {
      std::size_t place = home(values_[number]);
      while (places_[place].number != none) place = (place + 1) & mask_;
      places_[place] = {values_[number], static_cast<std::int32_t>(number)};
    }
  }

  std::vector<Place> places_;
  std::vector<Bits> values_;
  int shift_ = 0;
  std::size_t mask_ = 0;
};

// A table of few values, each at its first place: no branch depends on the values looked up.
template <class Bits>
struct Places {
  struct Place {
    Bits value;
    std::uint32_t number;
  };

  const Place* places;
  std::uint64_t factor;
  int shift;

  // What is not at this place has not been inserted.
  Place at(Bits value) const { return places[place_of(value, factor, shift)]; }

  bool has_all(const Bits* values, std::size_t size) const {
    bool all = true;
    for (std::size_t i = 0; i < size; ++i) all &= at(values[i]).value == values[i];
    return all;
  }

  // The same, and the number of each.
  bool number_all(const Bits* values, std::size_t size, std::uint8_t* numbers) const {
    bool all = true;
    for (std::size_t i = 0; i < size; ++i) {
      const Place place = at(values[i]);
      all &= place.value == values[i];
      numbers[i] = static_cast<std::uint8_t>(place.number);
    }
    return all;
  }
};

// Makes such a table.
template <class Bits>
class Direct {
 public:
  using Place = typename Places<Bits>::Place;

  // False if there are too many values, or no factor was found that keeps them apart.
  bool build(const std::vector<Bits>& values) {
    constexpr std::uint64_t factors = 8;
    built_ = false;
    if (values.empty() || values.size() > few_values) return false;
    // Of K values, K^2 / 2^(bits + 1) pairs meet in the same place by chance: here two.
    const int width = static_cast<int>(std::bit_width(values.size() - 1));
    const int bits = std::max(2 * width - 2, width + 2);
    for (std::uint64_t number = 0; number < 2 * factors && !built_; ++number) {
      built_ = fill(values, splitmix64(0, number) | 1, bits + (number < factors ? 0 : 1));
    }
    return built_;
  }

  void forget() { built_ = false; }
  bool built() const { return built_; }

  // To be copied: what is written in a loop could otherwise be one of its members.
  Places<Bits> places() const { return {places_.data(), factor_, shift_}; }

 private:
  bool fill(const std::vector<Bits>& values, std::uint64_t factor, int bits) {
    factor_ = factor;
    shift_ = 64 - bits;
    // Empty places hold the first value, which is looked up elsewhere.
    places_.assign(std::size_t{1} << bits, Place{values[0], 0});
    const std::size_t first = place_of(values[0], factor, shift_);
    for (std::size_t number = 1; number < values.size(); ++number) {
      const std::size_t place = place_of(values[number], factor, shift_);
      if (place == first || places_[place].number != 0) return false;
      places_[place] = {values[number], static_cast<std::uint32_t>(number)};
    }
    return true;
  }

  std::vector<Place> places_;
  std::uint64_t factor_ = 1;
  int shift_ = 0;
  bool built_ = false;
};

// Such a table of the values met so far. It is built again after a value was missing, but later
// each time.
template <class Bits>
class Learner {
 public:
  bool knows() const { return direct_.built(); }
  Places<Bits> places() const { return direct_.places(); }

  // After a block with values that it did not know.
  void learn(const std::vector<Bits>& values) {
    direct_.forget();
    if (waited_++ < wait_) return;
    direct_.build(values);
    waited_ = 0;
    wait_ = 2 * wait_ + 1;
  }

 private:
  Direct<Bits> direct_;
  std::size_t wait_ = 0;  // blocks
  std::size_t waited_ = 0;
};

constexpr std::size_t walk_block = 4096;

// Inserts the values of [begin, end); false once there are more than `most`.
template <class Bits>
bool collect(const Bits* theta, std::size_t begin, std::size_t end, std::size_t most,
             Numbers<Bits>& numbers) {
  Learner<Bits> learner;
  for (; begin < end; begin += walk_block) {
    const std::size_t size = std::min(walk_block, end - begin);
    if (learner.knows() && learner.places().has_all(theta + begin, size)) continue;
    for (std::size_t i = begin; i < begin + size; ++i) numbers.insert(theta[i]);
    if (numbers.values().size() > most) return false;
    if (begin + size < end) learner.learn(numbers.values());
  }
  return true;
}

// The values of one segment in order; more than `most`, but not all, if there are more.
template <class Bits>
std::vector<Bits> values_of(const Bits* theta, std::size_t size, std::size_t most) {
  if (size <= chunk_length) {
    thread_local Numbers<Bits> numbers;
    numbers.clear(std::min(size, few_values));
    collect(theta, 0, size, most, numbers);
    std::vector<Bits> values = numbers.values();
    sort_values(values);
    return values;
  }
  Numbers<Bits> whole;
  // Long enough for the look-ups to outweigh the merging.
  const std::size_t share = size / (4 * static_cast<std::size_t>(num_threads()));
  std::mutex merging;
  std::atomic<bool> fits{true};
  parallel_chunks(size, std::max(chunk_length, share),
                  [&](std::size_t, std::size_t begin, std::size_t end) {
                    if (!fits) return;
                    Numbers<Bits> part;
                    if (!collect(theta, begin, end, most, part)) fits = false;
                    const std::lock_guard lock(merging);
                    for (const Bits value : part.values()) whole.insert(value);
                    if (whole.values().size() > most) fits = false;
                  });
  std::vector<Bits> values = whole.values();
  sort_values(values);
  return values;
}

// Counts of few values, in tables in turn: increments of one count would wait for each other.
class FewCounts {
 public:
  void add(const std::uint8_t* numbers, std::size_t size) {
    std::size_t i = 0;
    for (; i + tables <= size; i += tables) {
      for (std::size_t t = 0; t < tables; ++t) ++counts_[numbers[i + t]][t];
    }
    for (; i < size; ++i) ++counts_[numbers[i]][0];
  }

  std::int64_t of(std::size_t number) const {
    return std::accumulate(counts_[number].begin(), counts_[number].end(), std::int64_t{0});
  }

 private:
  static constexpr std::size_t tables = 4;

  std::array<std::array<std::uint32_t, tables>, few_values> counts_{};
};

// The values of some weights as they came, and how many weights have each; nothing if there are
// more than a few. Writes which of them each weight has.
template <class Bits>
struct Few {
  std::vector<Bits> values;
  std::vector<std::int64_t> counts;

  bool read(const Bits* theta, std::size_t size, std::uint8_t* codes) {
    thread_local Numbers<Bits> numbers;
    numbers.clear(std::min(size, few_values));
    Learner<Bits> learner;
    FewCounts found;
    for (std::size_t begin = 0; begin < size; begin += walk_block) {
      const std::size_t length = std::min(walk_block, size - begin);
      const Bits* own = theta + begin;
      if (!learner.knows() || !learner.places().number_all(own, length, codes + begin)) {
        for (std::size_t i = 0; i < length; ++i) {
          codes[begin + i] = static_cast<std::uint8_t>(numbers.insert(own[i]));
        }
        if (numbers.values().size() > few_values) return false;
        if (begin + length < size) learner.learn(numbers.values());
      }
      found.add(codes + begin, length);
    }
    values = numbers.values();
    counts.resize(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) counts[k] = found.of(k);
    return true;
  }

  // Puts the values in order; the codes written follow.
  void renumber(const Numbers<Bits>& order, std::size_t size, std::uint8_t* codes) const {
    std::array<std::uint8_t, few_values> place{};
    for (std::size_t k = 0; k < values.size(); ++k) {
      place[k] = static_cast<std::uint8_t>(order.find(values[k]));
    }
    for (std::size_t i = 0; i < size; ++i) codes[i] = place[codes[i]];
  }
};

// Writes and counts the number of each value. False if one has none.
template <class Bits, class Code>
bool index_chunk(const Bits* theta, std::size_t begin, std::size_t end,
                 const Numbers<Bits>& numbers, std::uint32_t* counts, Code* out) {
  for (std::size_t i = begin; i < end; ++i) {
    const std::int32_t number = numbers.find(theta[i]);
    if (number < 0) return false;
    ++counts[number];
    out[i] = static_cast<Code>(number);
  }
  return true;
}

template <class Bits, class Code>
void index_segment(const Bits* theta, std::size_t size, const std::uint64_t* values,
                   std::size_t count, std::int64_t* counts, Code* out) {
  thread_local Numbers<Bits> own_numbers;
  thread_local std::vector<std::uint32_t> own_table;
  Numbers<Bits>& numbers = own_numbers;  // of this thread, also for those that share the segment
  numbers.clear(count);
  for (std::size_t k = 0; k < count; ++k) numbers.insert(static_cast<Bits>(values[k]));
  std::mutex merging;
  const auto index = [&](std::size_t, std::size_t begin, std::size_t end) {
    std::vector<std::uint32_t>& table = own_table;
    table.assign(count, 0);
    if (!index_chunk(theta, begin, end, numbers, table.data(), out))
      throw std::invalid_argument("a weight has none of the values");
    const std::lock_guard lock(merging);
    for (std::size_t k = 0; k < count; ++k) counts[k] += table[k];
  };
  if (size <= chunk_length) return index(0, 0, size);
  // Long enough for the look-ups to outweigh the counts.
  parallel_chunks(size, std::max(chunk_length, 16 * count), index);
}

// The values of one segment in order; false if there are more than a few.
template <class Bits>
bool code_segment(const Bits* theta, std::size_t size, std::uint8_t* codes, Few<Bits>& found) {
  std::vector<Few<Bits>> parts((size + chunk_length - 1) / chunk_length);
  std::atomic<bool> fits{true};
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    if (fits && !parts[chunk].read(theta + begin, end - begin, codes + begin)) fits = false;
  });
  if (!fits) return false;
  thread_local Numbers<Bits> own_order;
  Numbers<Bits>& order = own_order;  // of this thread, also for those that share the segment
  order.clear(parts.empty() ? 0 : parts[0].values.size());
  for (const Few<Bits>& part : parts)
    for (const Bits value : part.values) order.insert(value);
  found.values = order.values();
  if (found.values.size() > few_values) return false;
  sort_values(found.values);
  order.clear(found.values.size());
  for (const Bits value : found.values) order.insert(value);
  found.counts.assign(found.values.size(), 0);
  for (const Few<Bits>& part : parts) {
    for (std::size_t k = 0; k < part.values.size(); ++k)
      found.counts[static_cast<std::size_t>(order.find(part.values[k]))] += part.counts[k];
  }
  parallel_chunks(size, chunk_length, [&](std::size_t chunk, std::size_t begin, std::size_t end) {
    parts[chunk].renumber(order, end - begin, codes + begin);
  });
  return true;
}

// Calls body(segment, the bits of its first weight) for each segment.
template <class Body>
void for_bits(const Segmented& layer, const Body& body) {
  for_segments(layer, [&]<class Storage, class T>(std::size_t s, const Storage* theta, T) {
    body(s, reinterpret_cast<const BitsOf<sizeof(Storage)>*>(theta));
  });
}

Values joined(const std::vector<std::vector<std::uint64_t>>& segments) {
  Values values;
  for (const auto& own : segments) {
    values.sizes.push_back(static_cast<std::int64_t>(own.size()));
    values.bits.insert(values.bits.end(), own.begin(), own.end());
  }
  return values;
}

}  // namespace

std::optional<Values> distinct_values(const Segmented& layer, std::size_t most, std::size_t total) {
  std::vector<std::vector<std::uint64_t>> found(layer.segments());
  std::atomic<std::size_t> number{0};
  std::atomic<bool> fits{true};
  for_bits(layer, [&]<class Bits>(std::size_t s, const Bits* theta) {
    if (!fits) return;
    const std::vector<Bits> values = values_of(theta, layer.size(s), most);
    if (values.size() > most || (number += values.size()) > total) {
      fits = false;
      return;
    }
    found[s].assign(values.begin(), values.end());
  });
  if (!fits) return std::nullopt;
  return joined(found);
}

std::optional<Coded> code_values(const Segmented& layer, std::size_t total, std::uint8_t* codes) {
  std::vector<std::vector<std::uint64_t>> found(layer.segments());
  std::vector<std::vector<std::int64_t>> counts(layer.segments());
  std::atomic<std::size_t> number{0};
  std::atomic<bool> fits{true};
  for_bits(layer, [&]<class Bits>(std::size_t s, const Bits* theta) {
    if (!fits) return;
    Few<Bits> own;
    if (!code_segment(theta, layer.size(s), codes + layer.edges[s], own) ||
        (number += own.values.size()) > total) {
      fits = false;
      return;
    }
    found[s].assign(own.values.begin(), own.values.end());
    counts[s] = std::move(own.counts);
  });
  if (!fits) return std::nullopt;
  Coded all{joined(found), {}};
  for (const auto& own : counts) all.counts.insert(all.counts.end(), own.begin(), own.end());
  return all;
}

std::vector<std::int64_t> index_values(const Segmented& layer, const Values& values,
                                       std::size_t itemsize, void* out) {
  std::vector<std::int64_t> counts(values.bits.size());
  std::vector<std::int64_t> first(values.sizes.size());  // of the values of each segment
  std::exclusive_scan(values.sizes.begin(), values.sizes.end(), first.begin(), std::int64_t{0});
  const auto index = [&]<class Code>(Code* codes) {
    for_bits(layer, [&]<class Bits>(std::size_t s, const Bits* theta) {
      index_segment(theta, layer.size(s), values.bits.data() + first[s],
                    static_cast<std::size_t>(values.sizes[s]), counts.data() + first[s],
                    codes + layer.edges[s]);
    });
  };
  if (itemsize == 1) index(static_cast<std::uint8_t*>(out));
  if (itemsize == 2) index(static_cast<std::uint16_t*>(out));
  if (itemsize == 4) index(static_cast<std::uint32_t*>(out));
  return counts;
}

}  // namespace softq
