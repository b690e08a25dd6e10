#include "softq/force.h"

#include <algorithm>
#include <vector>

#include "softq/fft.h"
#include "softq/potential.h"

namespace softq {

void force_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                std::int64_t* force) {
  if (spacing == 0) {  // all weights at one point
    std::fill_n(force, bins, 0);
    return;
  }
  const std::int64_t m = reach(width, spacing, bins);
  // Prefix counts, continued beyond both ends so that no window is clipped.
  thread_local std::vector<Count> padded;
  padded.assign(static_cast<std::size_t>(bins + 2 * m + 1), 0);
  Count* prefix = padded.data() + m;
  for (std::int64_t k = 0; k < bins; ++k) prefix[k + 1] = prefix[k] + counts[k];
  std::fill_n(prefix + bins + 1, m, prefix[bins]);
  kernels().window_force(prefix, bins, m, force);
}

void force_fft(const Count* counts, std::int64_t bins, double spacing, double width,
               double* force) {
  if (spacing == 0) {
    std::fill_n(force, bins, 0.0);
    return;
  }
  const std::vector<double> padded = convolve_well(counts, bins, spacing, width);
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto at = static_cast<std::size_t>(k) + 1;
    force[k] = (padded[at + 1] - padded[at - 1]) / (2 * spacing);
  }
}

}  // namespace softq
