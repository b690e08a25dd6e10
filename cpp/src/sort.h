// Parallel least-significant-digit radix sort of weights by their bits.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "softq/threads.h"

namespace softq {

// Unsigned integers that order as the finite weights do (-0 just below +0).
template <class T>
struct OrderedBits {
  using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  static constexpr int width = 8 * sizeof(T);
  static constexpr Key sign = Key{1} << (width - 1);

  static Key encode(T x) {
    const auto bits = std::bit_cast<Key>(x);
    return (bits & sign) != 0 ? ~bits : bits | sign;
  }
  static T decode(Key key) { return std::bit_cast<T>((key & sign) != 0 ? key ^ sign : ~key); }
};

// Sorts items by key_of(item), stably; buffer has the same length. Returns whichever of the two
// holds the result.
template <class Item, class KeyOf>
Item* radix_sort(Item* items, Item* buffer, std::size_t size, const KeyOf& key_of) {
  using Key = std::invoke_result_t<KeyOf, const Item&>;
  if (size < 4096) {
    std::stable_sort(items, items + size,
                     [&](const Item& a, const Item& b) { return key_of(a) < key_of(b); });
    return items;
  }
  constexpr int digit_bits = 8;
  constexpr std::size_t digits = std::size_t{1} << digit_bits;
  using Table = std::array<std::size_t, digits>;
  const auto threads = static_cast<std::size_t>(num_threads());
  const std::size_t chunk =
      std::max<std::size_t>((size + threads - 1) / threads, std::size_t{1} << 14);
  std::vector<Table> tables((size + chunk - 1) / chunk);

  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)); shift += digit_bits) {
    const auto digit = [&](const Item& item) {
      return static_cast<std::size_t>(key_of(item) >> shift) & (digits - 1);
    };
    parallel_chunks(size, chunk, [&](std::size_t part, std::size_t begin, std::size_t end) {
      Table counts{};
      for (std::size_t i = begin; i < end; ++i) ++counts[digit(items[i])];
      tables[part] = counts;
    });
    // Counts become the places where each part writes each digit.
    std::size_t place = 0;
    bool constant = false;
    for (std::size_t d = 0; d < digits; ++d) {
      const std::size_t before = place;
      for (auto& table : tables) {
        const std::size_t count = table[d];
        table[d] = place;
        place += count;
      }
      constant = constant || place - before == size;
    }
    if (constant) continue;
    parallel_chunks(size, chunk, [&](std::size_t part, std::size_t begin, std::size_t end) {
      Table at = tables[part];
      for (std::size_t i = begin; i < end; ++i) buffer[at[digit(items[i])]++] = items[i];
    });
    std::swap(items, buffer);
  }
  return items;
}

}  // namespace softq
