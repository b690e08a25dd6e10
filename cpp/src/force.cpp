#include "softq/force.h"

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "moments.h"
#include "schedule.h"
#include "softq/fft.h"
#include "softq/potential.h"
#include "softq/threads.h"

namespace softq {

template <class T>
void force_scan(const Count* counts, std::int64_t bins, double spacing, double width,
                const Pull& pull, T* force) {
  if (spacing == 0) {  // all weights at one point
    std::fill_n(force, bins, T{0});
    return;
  }
  const std::int64_t m = reach(width, spacing, bins);
  if (pull.potential == Potential::log) {
    const LogPull log(pull, width, spacing, m);
    return with_moments(counts, bins, m, [&]<class M>(const Count* prefix, const M* moments) {
      kernels().moments<M>().template log_force<T>()(prefix, moments, bins, m, log, force);
    });
  }
  thread_local Scratch<Count> scratch;
  Windows<Count> windows(scratch, bins, m);
  kernels().counts<Count>().force<T>()(windows.prefix(counts), bins, m, pull.scale(), force);
}

template <class T>
void force_fft(const Count* counts, std::int64_t bins, double spacing, double width,
               const Pull& pull, T* force) {
  if (spacing == 0) {
    std::fill_n(force, bins, T{0});
    return;
  }
  const std::vector<double> padded = convolve_well(counts, bins, spacing, width);
  const bool linear = pull.potential == Potential::linear;
  const LogPull log(pull, width, spacing, 0);
  for (std::int64_t k = 0; k < bins; ++k) {
    const auto at = static_cast<std::size_t>(k) + 1;
    const double rise = padded[at + 1] - padded[at - 1];
    force[k] =
        static_cast<T>(linear ? pull.scale() * rise / (2 * spacing)
                              : log.force(rise / (2 * spacing), log.at_least(-padded[at] / width)));
  }
}

template <class T>
void force(const T* theta, std::size_t size, double width, std::int32_t bins, Method method,
           Potential potential, T* out) {
  const auto binning = make_binning(extent<T, T>(theta, size), size, bins);
  std::vector<Count> counts(static_cast<std::size_t>(bins));
  histogram(theta, size, binning, Sample(), counts.data());
  std::vector<T> table(counts.size());
  const auto on_bins = method == Method::scan ? force_scan<T> : force_fft<T>;
  on_bins(counts.data(), bins, binning.spacing, width, Pull{potential}, table.data());
  parallel_chunks(size, chunk_length, [&](std::size_t, std::size_t begin, std::size_t end) {
    const auto gather = [&](const T* block, std::size_t first, std::size_t count) {
      std::fill_n(out + first, count, T{0});
      kernels().weights<T>().gather_add(block, count, binning, table.data(), out + first);
    };
    for_blocks<T>(theta, begin, end, binning.factor, gather);
  });
}

#define SOFTQ_INSTANTIATE(T)                                                                \
  template void force_scan<T>(const Count*, std::int64_t, double, double, const Pull&, T*); \
  template void force_fft<T>(const Count*, std::int64_t, double, double, const Pull&, T*);  \
  template void force<T>(const T*, std::size_t, double, std::int32_t, Method, Potential, T*);
SOFTQ_INSTANTIATE(float)
SOFTQ_INSTANTIATE(double)

}  // namespace softq
