#include "softq/distinct.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <mutex>
#include <numeric>
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

// Puts distinct values in order; where each of them is now.
template <class Bits>
std::vector<std::uint32_t> sort_values(std::vector<Bits>& values) {
  using T = std::conditional_t<sizeof(Bits) == 8, double, float>;
  using Wide = BitsOf<sizeof(T)>;
  constexpr int shift = 8 * (sizeof(T) - sizeof(Bits));  // patterns of 16 bits order as these do
  std::vector<Indexed<T>> items;
  items.reserve(values.size());
  for (std::size_t k = 0; k < values.size(); ++k)
    items.emplace_back(std::bit_cast<T>(static_cast<Wide>(Wide{values[k]} << shift)), k);
  constexpr std::size_t few = 1024;
  if (items.size() > few) {
    RadixSorter<Indexed<T>>().sort(items.data(), items.size());
  } else {
    const auto key = [](const Indexed<T>& item) { return OrderedBits<T>::encode(item.value); };
    std::sort(items.begin(), items.end(),
              [&](const auto& a, const auto& b) { return key(a) < key(b); });
  }
  std::vector<std::uint32_t> places(values.size());
  for (std::size_t place = 0; place < items.size(); ++place) {
    values[place] = static_cast<Bits>(std::bit_cast<Wide>(items[place].value) >> shift);
    places[items[place].index] = static_cast<std::uint32_t>(place);
  }
  return places;
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

  // Those of several values.
  template <class Code>
  void insert_all(const Bits* values, std::size_t size, Code* numbers) {
    for (std::size_t i = 0; i < size; ++i) {
      const Place* places = places_.data();  // copies: the writes could change the members
      const std::uint64_t factor = factor_;
      const int shift = shift_;
      for (; i < size; ++i) {
        const Place found = places[place_of(values[i], factor, shift)];
        if (found.value != values[i] || found.number == none) break;
        numbers[i] = static_cast<Code>(found.number);
      }
      if (i < size) numbers[i] = static_cast<Code>(insert(values[i]));
    }
  }

 private:
  static constexpr std::int32_t none = -1;

  // Of the golden ratio, multiples of one number, which clusters often are, would meet more often.
  static constexpr std::uint64_t mixed = 0xD6E8FEB86659FD93U;
  static constexpr std::uint64_t unmixed = std::uint64_t{1} << 48;  // value k is at place k of 2^16

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

  std::size_t home(Bits value) const { return place_of(value, factor_, shift_); }

  void resize(int log_size) {
    places_.assign(std::size_t{1} << log_size, Place{0, none});
    factor_ = sizeof(Bits) == 2 && places_.size() == patterns ? unmixed : mixed;
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
  std::uint64_t factor_ = mixed;
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
  template <class Code>
  bool number_all(const Bits* values, std::size_t size, Code* numbers) const {
    bool all = true;
    for (std::size_t i = 0; i < size; ++i) {
      const Place place = at(values[i]);
      all &= place.value == values[i];
      numbers[i] = static_cast<Code>(place.number);
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

// How many weights have each code; of few codes in tables in turn: increments of one count would
// wait for each other.
template <class Code>
class CodeCounts {
 public:
  // All codes are below `values`.
  void add(const Code* codes, std::size_t size, std::size_t values) {
    if (values > counts_.size()) counts_.resize(values);
    auto* counts = counts_.data();
    std::size_t i = 0;
    for (; i + tables <= size; i += tables) {
      for (std::size_t t = 0; t < tables; ++t) ++counts[codes[i + t]][t];
    }
    for (; i < size; ++i) ++counts[codes[i]][0];
  }

  std::int64_t of(std::size_t code) const {
    return std::accumulate(counts_[code].begin(), counts_[code].end(), std::int64_t{0});
  }

 private:
  static constexpr std::size_t tables = sizeof(Code) == 1 ? 4 : 1;

  std::vector<std::array<std::uint32_t, tables>> counts_;
};

// The values of some weights as they came, and how many weights have each. Writes which of them
// each weight has.
template <class Bits, class Code>
struct Part {
  std::vector<Bits> values;
  std::vector<std::int64_t> counts;

  // False once there are more than `most` values.
  bool read(const Bits* theta, std::size_t size, std::size_t most, Code* codes) {
    thread_local Numbers<Bits> own_numbers;
    Numbers<Bits>& numbers = own_numbers;
    numbers.clear(std::min(size, few_values));
    Learner<Bits> learner;
    CodeCounts<Code> found;
    for (std::size_t begin = 0; begin < size; begin += walk_block) {
      const std::size_t length = std::min(walk_block, size - begin);
      const Bits* own = theta + begin;
      if (!learner.knows() || !learner.places().number_all(own, length, codes + begin)) {
        numbers.insert_all(own, length, codes + begin);
        if (numbers.values().size() > most) return false;
        if (begin + length < size) learner.learn(numbers.values());
      }
      found.add(codes + begin, length, numbers.values().size());
    }
    values = numbers.values();
    counts.resize(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) counts[k] = found.of(k);
    return true;
  }
};

// How many weights each part of a segment has. Every part has its own table of values; parts are so
// long that looking up their weights takes more time than merging the tables.
std::size_t part_length(std::size_t size, std::size_t most) {
  constexpr std::size_t longest = std::size_t{1} << 30;  // counts have 32 bits
  if (most <= few_values) return chunk_length;
  const auto threads = static_cast<std::size_t>(num_threads());
  const std::size_t share = (size + threads - 1) / threads;
  return std::clamp(share, std::max(chunk_length, 16 * most), longest);
}

// The values of parts that follow each other, in order, with their counts. places[p][k] is the one
// of value k of part p.
template <class Bits, class Code>
struct Merged {
  std::vector<Bits> values;
  std::vector<std::int64_t> counts;
  std::vector<std::vector<std::uint32_t>> places;

  explicit Merged(const std::vector<Part<Bits, Code>>& parts) : places(parts.size()) {
    if (parts.size() == 1) {
      values = parts[0].values;
      places[0] = sort_values(values);
    } else {
      Numbers<Bits> numbers;
      for (std::size_t p = 0; p < parts.size(); ++p) {
        for (const Bits value : parts[p].values)
          places[p].push_back(static_cast<std::uint32_t>(numbers.insert(value)));
      }
      values = numbers.values();
      const std::vector<std::uint32_t> order = sort_values(values);
      for (auto& own : places)
        for (std::uint32_t& place : own) place = order[place];
    }
    counts.assign(values.size(), 0);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      for (std::size_t k = 0; k < places[p].size(); ++k) counts[places[p][k]] += parts[p].counts[k];
    }
  }
};

// The values of one segment in order, and their counts; false if there are more than `most`.
template <class Bits, class Code>
bool code_segment(const Bits* theta, std::size_t size, std::size_t most, Code* codes,
                  std::vector<std::uint64_t>& values, std::vector<std::int64_t>& counts) {
  const std::size_t length = part_length(size, most);
  std::vector<Part<Bits, Code>> parts((size + length - 1) / length);
  const auto for_parts = [&](const auto& body) {
    if (size > length) return parallel_chunks(size, length, body);
    if (size > 0) body(0, 0, size);  // segments may be short
  };
  std::atomic<bool> fits{true};
  for_parts([&](std::size_t p, std::size_t begin, std::size_t end) {
    if (fits && !parts[p].read(theta + begin, end - begin, most, codes + begin)) fits = false;
  });
  if (!fits) return false;
  Merged<Bits, Code> merged(parts);
  if (merged.values.size() > most) return false;
  for_parts([&](std::size_t p, std::size_t begin, std::size_t end) {
    const std::uint32_t* places = merged.places[p].data();
    for (std::size_t i = begin; i < end; ++i) codes[i] = static_cast<Code>(places[codes[i]]);
  });
  values.assign(merged.values.begin(), merged.values.end());
  counts = std::move(merged.counts);
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

std::optional<Coded> code_values(const Segmented& layer, std::size_t most, std::size_t total,
                                 std::size_t itemsize, void* out) {
  std::vector<std::vector<std::uint64_t>> found(layer.segments());
  std::vector<std::vector<std::int64_t>> counts(layer.segments());
  std::atomic<std::size_t> number{0};
  std::atomic<bool> fits{true};
  const auto code = [&]<class Code>(Code* codes) {
    for_bits(layer, [&]<class Bits>(std::size_t s, const Bits* theta) {
      if (!fits) return;
      if (!code_segment(theta, layer.size(s), most, codes + layer.edges[s], found[s], counts[s]) ||
          (number += found[s].size()) > total)
        fits = false;
    });
  };
  if (itemsize == 1) code(static_cast<std::uint8_t*>(out));
  if (itemsize == 2) code(static_cast<std::uint16_t*>(out));
  if (itemsize == 4) code(static_cast<std::uint32_t*>(out));
  if (!fits) return std::nullopt;
  Coded all{joined(found), {}};
  for (const auto& own : counts) all.counts.insert(all.counts.end(), own.begin(), own.end());
  return all;
}

}  // namespace softq
