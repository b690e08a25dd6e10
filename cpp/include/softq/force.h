// dV/dtheta on the bins' midpoints (Eq. 7, without h).
#pragma once

#include <cstdint>

#include "softq/density.h"

namespace softq {

// Exact derivative of the binned potential times scale: the weights within the well in lower bins
// minus those in higher bins, an integer that is rounded only by the product and by T.
template <class T>
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width, double scale,
                T* force);

// Central difference of the FFT potential, evaluated one bin beyond both ends (the paper's way).
template <class T>
void force_fft(const Count* counts, std::int64_t bins, double spacing, double width, double scale,
               T* force);

}  // namespace softq
