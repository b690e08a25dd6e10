#include "softq/potential.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "moments.h"
#include "softq/fft.h"

namespace softq {
void potential_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                    double* potential) {
  const std::int64_t m = reach(width, spacing, bins);
  with_moments(counts, bins, m, [&]<class M>(const Count* prefix, const M* moments) {
    kernels().moments<M>().potential(prefix, moments, bins, m, spacing, width, potential);
  });
}

void potential_fft(const Count* counts, std::int64_t bins, double spacing, double width,
                   double* potential) {
  const std::vector<double> padded = convolve_well(counts, bins, spacing, width);
  std::copy_n(padded.begin() + 1, bins, potential);
}

namespace {

// The length of the code, in nats.
double code_length(const Count* counts, std::int64_t bins, double spacing, double width) {
  const std::int64_t m = reach(width, spacing, bins);
  const LogPull pull({Potential::log}, width, spacing, m);
  double nats = 0;
  with_moments(counts, bins, m, [&]<class M>(const Count* prefix, const M* moments) {
    const auto size = static_cast<double>(prefix[bins]);
    for (std::int64_t k = 0; k < bins; ++k) {
      if (counts[k] == 0) continue;
      const auto population = static_cast<double>(prefix[k + m + 1] - prefix[k - m]);
      const double occupancy = pull.occupancy(population, static_cast<double>(moments[k]));
      nats += static_cast<double>(counts[k]) * std::log(size / occupancy);
    }
  });
  return nats;
}

}  // namespace

double mean_field_energy(const Count* counts, std::int64_t bins, double spacing, double width,
                         Potential potential) {
  if (potential == Potential::log) return code_length(counts, bins, spacing, width);
  const std::int64_t m = reach(width, spacing, bins);
  std::uint64_t pairs = 0;  // ordered pairs of different weights inside the well: below 2^62
  double distance = 0;      // the sum of their distances, in bins
  with_moments(counts, bins, m, [&]<class M>(const Count* prefix, const M* moments) {
    // Narrow moments are below 2^31, and their products with the counts add up to less than 2^62.
    using Sum = std::conditional_t<sizeof(M) == 4, std::uint64_t, double>;
    Sum sum{};
    // No branches: most bins of a small layer are empty, and a loop of products becomes vectors.
    for (std::int64_t k = 0; k < bins; ++k) {
      pairs += std::uint64_t{counts[k]} * (prefix[k + m + 1] - prefix[k - m]);
      sum += static_cast<Sum>(counts[k]) * static_cast<Sum>(moments[k]);
    }
    pairs -= prefix[bins];
    distance = static_cast<double>(sum);
  });
  return spacing * distance - width * static_cast<double>(pairs);
}

}  // namespace softq
