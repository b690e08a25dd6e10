// The occupied bins of each segment of a layer: their weights' number and mean, and which weight is
// in which.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "softq/segments.h"

namespace softq {

// 2^20 bins of each segment at most. With `signs`, weights below 0, exactly 0 and above 0 of the
// same bin are apart.
struct Bins {
  std::int32_t number;
  bool signs;
};

// Occupied bins of segments, one behind the other and ascending in each.
struct Places {
  std::span<const std::int64_t> sizes;  // of each segment, how many are occupied
  std::span<const std::int32_t> slot;   // number of the bin, or 3 times that + 1 + sign
};

// Weights of occupied bins, sums in units that depend on the range of the segment only.
struct BinSums {
  std::vector<std::int64_t> sizes;  // as in Places
  std::vector<std::int32_t> slot;
  std::vector<std::int64_t> count;
  std::vector<Wide> sum;
  std::vector<double> low, high;  // smallest and largest weight
};

// A weight's bin is that of Binning::index() over the range of its segment, whose ends may be any
// finite numbers: the arithmetic is that of numbers scaled by a power of two.
// Those of segments first … last - 1.
BinSums bin_sums(const Segmented& layer, const Ranges& ranges, const Bins& bins, std::size_t first,
                 std::size_t last);

// The mean weight of each of these bins, computed from sums of integers: it depends on no order,
// and sums of several pieces of a layer may have been added up. Weights are rounded to multiples of
// 2^-49 of the largest one; of float32, those above 2^-26 of it need not be.
std::vector<double> bin_means(Scalar scalar, const Ranges& ranges, const Bins& bins,
                              const BinSums& sums, std::size_t first);

// out[i] = the entry of `table` for the bin of weight i. There is an entry, of 1, 2, 4 or 8 bytes,
// for each occupied bin. `out` may be the weights themselves. The call cannot be interrupted.
void look_up_bins(const Segmented& layer, const Ranges& ranges, const Bins& bins,
                  const Places& places, const void* table, std::size_t itemsize, void* out);

}  // namespace softq
