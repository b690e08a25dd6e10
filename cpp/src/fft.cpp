#include "softq/fft.h"

#include <ducc0/fft/fft1d_impl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "softq/potential.h"
#include "softq/threads.h"
#include "softq/well.h"

namespace softq {
namespace {

using Plan = ducc0::pocketfft_r<double>;

// A layer's range and width change little from step to step, so plans come back often.
std::shared_ptr<const Plan> plan_of(std::size_t length) {
  static std::mutex mutex;
  static std::unordered_map<std::size_t, std::shared_ptr<const Plan>> plans;
  {
    const std::lock_guard lock(mutex);
    const auto found = plans.find(length);
    if (found != plans.end()) return found->second;
  }
  // Without the lock, for it takes long: others need not wait, and a fork does not find it locked.
  auto plan = std::make_shared<const Plan>(length);
  const std::lock_guard lock(mutex);
  if (plans.size() >= 64) plans.clear();
  return plans.try_emplace(length, std::move(plan)).first->second;
}

}  // namespace

void real_fft(double* values, std::size_t length, bool forward) {
  plan_of(length)->exec(values, 1.0, forward);
}

std::vector<double> convolve_well(const Count* counts, std::int64_t bins, double spacing,
                                  double width) {
  const std::int64_t m = reach(width, spacing, bins + 1);  // from bin -1 to bin bins - 1
  // Longer than the outputs -1 … bins and the well's reach together: nothing wraps around.
  const std::size_t length = ducc0::good_size_real(static_cast<std::size_t>(bins + m + 1) + 1);
  std::vector<double> signal(length, 0.0);
  std::vector<double> kernel(length, 0.0);
  std::copy_n(counts, bins, signal.begin());
  const Well well{width};
  kernel[0] = well.energy(0);
  for (std::int64_t d = 1; d <= m; ++d) {
    const auto at = static_cast<std::size_t>(d);
    kernel[at] = kernel[length - at] = well.energy(static_cast<double>(d) * spacing);
  }

  const auto plan = plan_of(length);
  check_interruption();
  plan->exec(signal.data(), 1.0, true);
  check_interruption();
  plan->exec(kernel.data(), 1.0, true);
  check_interruption();
  // Halfcomplex order: r0, r1, i1, r2, i2, …; the kernel is even, so its transform is real.
  signal[0] *= kernel[0];
  for (std::size_t i = 1; i + 1 < length; i += 2) {
    signal[i] *= kernel[i];
    signal[i + 1] *= kernel[i];
  }
  if (length % 2 == 0) signal[length - 1] *= kernel[length - 1];
  plan->exec(signal.data(), 1.0 / static_cast<double>(length), false);

  std::vector<double> potential(static_cast<std::size_t>(bins) + 2);
  potential[0] = signal[length - 1];
  std::copy_n(signal.begin(), bins + 1, potential.begin() + 1);
  return potential;
}

}  // namespace softq
