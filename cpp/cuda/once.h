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

// counts: device memory for `bins` numbers. Throws std::invalid_argument as make_binning() of the
// CPU. All of these wait for the stream where they return numbers.
BinnedRange density(const Weights& weights, std::int32_t bins, double fraction, std::uint64_t seed,
                    std::int64_t* counts, cudaStream_t stream);

// float32 and float64 weights. Throws std::invalid_argument as the CPU's.
double pair_energy(const Weights& weights, double width, bool direct, cudaStream_t stream);
void pair_force(const Weights& weights, double width, bool direct, std::int64_t* force,
                cudaStream_t stream);

void potential(const std::int64_t* counts, std::int64_t bins, double spacing, double width,
               Method method, double* out, cudaStream_t stream);
double mean_field_energy(const std::int64_t* counts, std::int64_t bins, double spacing,
                         double width, cudaStream_t stream);

}  // namespace softq::cuda
