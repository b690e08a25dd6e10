// Linear convolution of counts with the well, by pocketfft in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "softq/density.h"

namespace softq {

// V on the midpoints -1, 0, …, bins: one bin beyond both ends. Two allocations of the padded
// length.
std::vector<double> convolve_well(const Count* counts, std::int64_t bins, double spacing,
                                  double width);

}  // namespace softq
