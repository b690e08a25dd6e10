// Windows of bins, from sums of counts.
#pragma once

#include <cstdint>

#include "softq/potential.h"
#include "softq/pull.h"

namespace softq::cuda {

// Weights closer than m bins to bin k: in lower bins, in higher ones, and all.
struct Sides {
  unsigned below, above, all;

  // The force on bin k (Eq. 7).
  SOFTQ_HD std::int32_t force() const { return static_cast<std::int32_t>(below - above); }
};

// prefix[j] counts the weights in bins 0 … j. Unsigned counts wrap around consistently, as in the
// CPU's kernels.
template <class Prefix>
SOFTQ_HD Sides sides_of(const Prefix& prefix, std::int64_t bins, std::int64_t m, std::int64_t k) {
  const auto before = [&](std::int64_t j) {  // the weights in bins below j
    return j <= 0 ? 0U : prefix[(j < bins ? j : bins) - 1];
  };
  const unsigned low = before(k - m);
  const unsigned high = before(k + m + 1);
  return {before(k) - low, high - before(k + 1), high - low};
}

// Population of the window |j - k| <= m around bin k and the sum of its distances from k, in bins.
struct Window {
  std::int64_t population, distance;

  SOFTQ_HD double occupancy(const LogPull& pull) const {
    return pull.occupancy(static_cast<double>(population), static_cast<double>(distance));
  }
};

// population and moment are inclusive sums of the counts and of bins times counts.
template <class Count>
SOFTQ_HD Window window(const Count* population, const std::int64_t* moment, std::int64_t bins,
                       std::int64_t m, std::int64_t k) {
  const auto before = [](const auto* sums, std::int64_t j) {
    return j > 0 ? static_cast<std::int64_t>(sums[j - 1]) : 0;
  };
  const std::int64_t first = k > m ? k - m : 0;
  const std::int64_t last = k + m + 1 < bins ? k + m + 1 : bins;
  const std::int64_t lower = before(population, k) - before(population, first);
  const std::int64_t upper = before(population, last) - before(population, k);
  return {lower + upper, k * lower - (before(moment, k) - before(moment, first)) +
                             (before(moment, last) - before(moment, k)) - k * upper};
}

// Parts of an energy without self terms: ordered pairs inside the well, and the sum of their
// distances in bins.
struct EnergyPart {
  double pairs, distance;

  // That of `count` weights in a bin.
  SOFTQ_HD static EnergyPart of(std::int64_t count, const Window& near) {
    return {static_cast<double>(count) * static_cast<double>(near.population - 1),
            static_cast<double>(count) * static_cast<double>(near.distance)};
  }
};

}  // namespace softq::cuda
