// The distinct values of the segments of a layer, compared bit by bit: -0 and 0 are apart, and so
// are NaNs of different bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "softq/segments.h"

namespace softq {

struct Values {
  std::vector<std::int64_t> sizes;  // of each segment, how many
  std::vector<std::uint64_t> bits;  // of the values, in IEEE total order in each segment
};

// Nothing if a segment has more than `most` values, 2^24 at most, or if all segments together have
// more than `total`.
std::optional<Values> distinct_values(const Segmented& layer, std::size_t most, std::size_t total);

struct Coded {
  Values values;
  std::vector<std::int64_t> counts;  // weights of each value
};

// codes[i] = which of the values of its segment weight i has, an integer of 1, 2 or 4 bytes. All of
// that in one pass over the weights. Nothing, and codes without a meaning, if a segment has more
// than `most` values, for which the codes have room, or if all together have more than `total`.
std::optional<Coded> code_values(const Segmented& layer, std::size_t most, std::size_t total,
                                 std::size_t itemsize, void* codes);

}  // namespace softq
