#include "softq/potential.h"

#include <algorithm>
#include <vector>

#include "softq/fft.h"

namespace softq {
namespace {

// Population and first moment of the window |j - k| <= reach around every bin.
template <class Body>
void for_windows(const Count* counts, std::int64_t bins, std::int64_t reach, const Body& body) {
  std::vector<std::int64_t> population(static_cast<std::size_t>(bins) + 1, 0);
  std::vector<std::int64_t> moment(static_cast<std::size_t>(bins) + 1, 0);
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto at = static_cast<std::size_t>(k);
    population[at + 1] = population[at] + counts[k];
    moment[at + 1] = moment[at] + k * static_cast<std::int64_t>(counts[k]);
  }
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto at = static_cast<std::size_t>(k);
    const auto first = static_cast<std::size_t>(std::max<std::int64_t>(0, k - reach));
    const auto last = static_cast<std::size_t>(std::min(bins, k + reach + 1));
    const std::int64_t left =
        k * (population[at] - population[first]) - (moment[at] - moment[first]);
    const std::int64_t right =
        (moment[last] - moment[at]) - k * (population[last] - population[at]);
    body(k, population[last] - population[first], left + right);
  }
}

}  // namespace

void potential_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                    double* potential) {
  for_windows(counts, bins, reach(width, spacing, bins),
              [&](std::int64_t k, std::int64_t population, std::int64_t moment) {
                potential[k] =
                    spacing * static_cast<double>(moment) - width * static_cast<double>(population);
              });
}

void potential_fft(const Count* counts, std::int64_t bins, double spacing, double width,
                   double* potential) {
  const std::vector<double> padded = convolve_well(counts, bins, spacing, width);
  std::copy_n(padded.begin() + 1, bins, potential);
}

double mean_field_energy(const Count* counts, std::int64_t bins, double spacing, double width) {
  double pairs = 0;     // ordered pairs of different weights inside the well
  double distance = 0;  // the sum of their distances, in bins
  for_windows(counts, bins, reach(width, spacing, bins),
              [&](std::int64_t k, std::int64_t population, std::int64_t moment) {
                if (counts[k] == 0) return;
                pairs += static_cast<double>(counts[k]) * static_cast<double>(population - 1);
                distance += static_cast<double>(counts[k]) * static_cast<double>(moment);
              });
  return spacing * distance - width * pairs;
}

}  // namespace softq
