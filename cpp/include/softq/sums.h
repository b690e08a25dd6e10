// Sums of gradients over clusters, as integers: independent of the order of the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "softq/scalar.h"

namespace softq {

// The sum of round(scale * gradient) over the weights of each of so many clusters, to even on a
// tie. The caller chooses the scale so that no term exceeds 2^51, and no sum 64 bits. Throws
// std::invalid_argument if a weight is in none of the clusters.
std::vector<std::int64_t> sum_by_cluster(const void* gradients, Scalar scalar,
                                         const std::int32_t* clusters, std::size_t size,
                                         std::size_t number, double scale);

}  // namespace softq
