#include "softq/force.h"

#include <algorithm>
#include <vector>

#include "softq/fft.h"
#include "softq/potential.h"

namespace softq {

template <class T>
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width, double scale,
                T* force) {
  if (spacing == 0) {  // all weights at one point
    std::fill_n(force, bins, T{0});
    return;
  }
  const std::int64_t m = reach(width, spacing, bins);
  // Prefix counts, continued beyond both ends so that no window is clipped.
  thread_local std::vector<Count> padded;
  const auto length = static_cast<std::size_t>(bins + 2 * m + 1);
  if (padded.size() < length) padded.resize(length);
  Count* prefix = padded.data() + m;
  std::fill_n(padded.data(), m + 1, Count{0});
  kernels().prefix_sum(counts, static_cast<std::size_t>(bins), prefix + 1);
  std::fill_n(prefix + bins + 1, m, prefix[bins]);
  kernels().weights<T>().window_force(prefix, bins, m, scale, force);
}

template <class T>
void force_fft(const Count* counts, std::int64_t bins, double spacing, double width, double scale,
               T* force) {
  if (spacing == 0) {
    std::fill_n(force, bins, T{0});
    return;
  }
  const std::vector<double> padded = convolve_well(counts, bins, spacing, width);
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto at = static_cast<std::size_t>(k) + 1;
    force[k] = static_cast<T>(scale * (padded[at + 1] - padded[at - 1]) / (2 * spacing));
  }
}

#define SOFTQ_INSTANTIATE(T)                                                           \
  template void force_scan<T>(const Count*, std::int64_t, double, double, double, T*); \
  template void force_fft<T>(const Count*, std::int64_t, double, double, double, T*);
SOFTQ_INSTANTIATE(float)
SOFTQ_INSTANTIATE(double)

}  // namespace softq
