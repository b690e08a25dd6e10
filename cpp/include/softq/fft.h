// Linear convolution of counts with the well, by pocketfft in float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "softq/density.h"

namespace softq {

// V on the midpoints -1, 0, …, bins: one bin beyond both ends. Two allocations of the padded
// length.
std::vector<double> convolve_well(const Count* counts, std::int64_t bins, double spacing,
                                  double width);

// In place, without a factor, from real values to halfcomplex order (r0, r1, i1, r2, i2, …) or
// back.
void real_fft(double* values, std::size_t length, bool forward);

}  // namespace softq
