#include "softq/force.h"

#include <algorithm>
#include <vector>

#include "softq/fft.h"
#include "softq/potential.h"
#include "windows.h"

namespace softq {

template <class T>
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width, double scale,
                T* force) {
  if (spacing == 0) {  // all weights at one point
    std::fill_n(force, bins, T{0});
    return;
  }
  const std::int64_t m = reach(width, spacing, bins);
  thread_local Scratch<Count> scratch;
  Windows<Count> windows(scratch, bins, m);
  kernels().counts<Count>().force<T>()(windows.prefix(counts), bins, m, scale, force);
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
