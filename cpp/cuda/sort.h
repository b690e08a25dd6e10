// Sorting by CUB, compiled on its own: it takes longer than all else together.
#pragma once

#include <cstdint>

#include "device.h"

namespace softq::cuda {

// T is float or double, without NaN.
template <class T>
void sort(const T* in, T* out, std::uint64_t size, const Place& place);

// values go with the weights.
template <class T>
void sort(const T* in, T* out, const std::uint32_t* values_in, std::uint32_t* values_out,
          std::uint64_t size, const Place& place);

}  // namespace softq::cuda
