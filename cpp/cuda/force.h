// The force on the bins from prefix counts (Eq. 7).
#pragma once

#include <cstdint>

#include "softq/potential.h"

namespace softq::cuda {

// Weights within m bins below bin k minus those within m bins above it; prefix[j] counts the
// weights in bins 0 … j. Unsigned counts wrap around consistently, as in the CPU's kernels.
SOFTQ_HD std::int32_t window_force(const unsigned* prefix, std::int64_t bins, std::int64_t m,
                                   std::int64_t k) {
  const auto before = [&](std::int64_t j) {  // the weights in bins below j
    return j <= 0 ? 0U : prefix[(j < bins ? j : bins) - 1];
  };
  const unsigned below = before(k) - before(k - m);
  const unsigned above = before(k + m + 1) - before(k + 1);
  return static_cast<std::int32_t>(below - above);
}

}  // namespace softq::cuda
