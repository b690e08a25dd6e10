// dV/dtheta on the bins' midpoints (Eq. 7, without h).
#pragma once

#include <cstdint>

#include "softq/density.h"

namespace softq {

// Exact derivative of the binned potential, an integer: the weights within the well in lower bins
// minus those in higher bins.
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                std::int64_t* force);

// Central difference of the FFT potential, evaluated one bin beyond both ends (the paper's way).
void force_fft(const Count* counts, std::int64_t bins, double spacing, double width, double* force);

}  // namespace softq
