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

// Nothing if a segment has more than 256 values, or if all together have more than `total`.
// codes[i] = which of the values of its segment weight i has. All of that in one pass over the
// weights.
std::optional<Coded> code_values(const Segmented& layer, std::size_t total, std::uint8_t* codes);

// out[i] = which of the values of its segment weight i has, an integer of 1, 2 or 4 bytes. Returns
// how many weights have each value. Throws std::invalid_argument for a weight that has none.
std::vector<std::int64_t> index_values(const Segmented& layer, const Values& values,
                                       std::size_t itemsize, void* out);

}  // namespace softq
