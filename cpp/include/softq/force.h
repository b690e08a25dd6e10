// dV/dtheta on the bins' midpoints (Eq. 7, without h).
#pragma once

#include <cstdint>

#include "softq/coupling.h"
#include "softq/density.h"

namespace softq {

// From the exact derivative of the binned potential: the weights within the well in lower bins
// minus those in higher bins, an integer. It is rounded only by the product and by T, with the log
// potential also by the occupancy and the division.
template <class T>
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                const Pull& pull, T* force);

// Central difference of the FFT potential, evaluated one bin beyond both ends (the paper's way).
template <class T>
void force_fft(const Count* counts, std::int64_t bins, double spacing, double width,
               const Pull& pull, T* force);

// dV/dtheta of each weight, at its bin's midpoint, or that over |V|. T is float or double. Throws
// std::invalid_argument as make_binning().
template <class T>
void force(const T* theta, std::size_t size, double width, std::int32_t bins, Method method,
           Potential potential, T* out);

}  // namespace softq
