// Walks over weights in blocks that fit the first-level cache, converted to the type they are
// computed in and multiplied with the factor of their binning.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace softq {

inline constexpr std::size_t block_length = 1024;

// Calls body(block, first, count): count weights from index first on, as T, times the factor.
template <class T, class Storage, class Body>
void for_blocks(const Storage* theta, std::size_t begin, std::size_t end, T factor,
                const Body& body) {
  for (std::size_t first = begin; first < end; first += block_length) {
    const std::size_t count = std::min(block_length, end - first);
    if constexpr (std::is_same_v<Storage, T>) {
      if (factor == 1) {
        body(theta + first, first, count);
        continue;
      }
    }
    T block[block_length];
    for (std::size_t i = 0; i < count; ++i) block[i] = static_cast<T>(theta[first + i]) * factor;
    body(block, first, count);
  }
}

}  // namespace softq
