// The binned density of a layer's weights (Eq. 4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "softq/binning.h"
#include "softq/kernels.h"
#include "softq/sampling.h"

namespace softq {

using Count = std::uint32_t;  // a binned layer has fewer than 2^31 weights

// Smallest and largest weight; counts NaN and inf. Empty input gives {0, 0, 0}.
// Storage is float, double, Half or BFloat16; T the type it is computed in.
template <class Storage, class T>
Extent<T> extent(const Storage* theta, std::size_t size);

// Throws std::invalid_argument when weights are not finite, or high - low overflows T.
template <class T>
Binning<T> make_binning(const Extent<T>& extent, std::size_t size, std::int32_t bins);

// Number of sampled weights in each bin.
template <class Storage, class T>
void histogram(const Storage* theta, std::size_t size, const Binning<T>& binning, const Draw& draw,
               Count* counts);

// The same for few weights, on this thread alone, added to counts of any unsigned type, which are
// followed by spare_slots places of no meaning.
template <class C, class Storage, class T>
void tally(const Storage* theta, std::size_t begin, std::size_t end, const Binning<T>& binning,
           const Sample& sample, C* counts);

}  // namespace softq
