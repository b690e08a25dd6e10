// dV/dtheta on the bins' midpoints (Eq. 7, without h).
#pragma once

#include <cstdint>

#include "softq/coupling.h"
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

// dV/dtheta of each weight, at its bin's midpoint. T is float or double. Throws
// std::invalid_argument as make_binning().
template <class T>
void force(const T* theta, std::size_t size, double width, std::int32_t bins, Method method,
           T* out);

}  // namespace softq
