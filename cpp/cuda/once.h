// The functions of one array of weights: density, exact pairs, potential.
#pragma once

#include <cstdint>

#include "device.h"
#include "layers.h"
#include "softq/coupling.h"

namespace softq::cuda {

struct Weights {
  const void* theta;
  std::uint64_t size;
  Scalar scalar;
};

// Nothing of this can be recorded in a CUDA graph but potential() with Method::scan, which waits
// for nothing.

// counts: device memory for `bins` numbers. Throws std::invalid_argument as make_binning() of the
// CPU. All of these wait for the stream where they return numbers.
BinnedRange density(const Weights& weights, std::int32_t bins, double fraction, std::uint64_t seed,
                    std::int64_t* counts, const Place& place);

// float32 and float64 weights. Throws std::invalid_argument as the CPU's.
double pair_energy(const Weights& weights, double width, bool direct, const Place& place);
void pair_force(const Weights& weights, double width, bool direct, std::int64_t* force,
                const Place& place);

void potential(const std::int64_t* counts, std::int64_t bins, double spacing, double width,
               Method method, double* out, const Place& place);
double mean_field_energy(const std::int64_t* counts, std::int64_t bins, double spacing,
                         double width, const Place& place);

}  // namespace softq::cuda
