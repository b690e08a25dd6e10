#include "softq/potential.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "softq/fft.h"
#include "windows.h"

namespace softq {
namespace {

// Calls body(prefix, moments) for the windows of all weights closer than the reach.
template <class Body>
void with_moments(const Count* counts, std::int64_t bins, std::int64_t reach, const Body& body) {
  thread_local Scratch<Count> scratch;
  Windows<Count> windows(scratch, bins, reach);
  const Count* prefix = windows.prefix(counts);
  const auto call = [&]<class M>(M) {
    thread_local Scratch<M> room;
    M* moments = room.reserve(static_cast<std::size_t>(bins));
    kernels().moments<M>().moments(prefix, bins, reach, moments);
    body(prefix, static_cast<const M*>(moments));
  };
  // No moment is larger than that of all weights at the edge of the window.
  if (static_cast<std::uint64_t>(prefix[bins]) * static_cast<std::uint64_t>(reach) <
      std::uint64_t{1} << 31) {
    call(std::uint32_t{});
  } else {
    call(std::uint64_t{});
  }
}

}  // namespace

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

double mean_field_energy(const Count* counts, std::int64_t bins, double spacing, double width) {
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
