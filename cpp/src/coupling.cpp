#include "softq/coupling.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <variant>

#include "gather.h"
#include "schedule.h"
#include "slots.h"
#include "softq/density.h"
#include "softq/force.h"
#include "softq/potential.h"
#include "softq/threads.h"
#include "windows.h"

namespace softq {
namespace {

using AnyBinning = std::variant<Binning<float>, Binning<double>>;

AnyBinning bin(const Layer& layer) {
  return with_storage(layer.scalar, [&]<class Storage, class T>(Storage, T) -> AnyBinning {
    const auto* theta = static_cast<const Storage*>(layer.theta);
    return make_binning(extent<Storage, T>(theta, layer.size), layer.size, layer.bins);
  });
}

// So many bins may the log potential of a small layer have: distances take 31 bits.
constexpr std::int64_t narrow_log_bins = std::int64_t{1} << 15;

// The force of the log potential on the bins of a small layer that have weights.
template <class Storage, class T>
void narrow_log_table(const Layer& layer, const Binning<T>& binning, const Pull& pull,
                      const std::uint16_t* prefix, T* table) {
  const std::int64_t bins = layer.bins;
  const std::int64_t m = reach(layer.width, binning.spacing, bins);
  const LogPull log(pull, layer.width, binning.spacing, m);
  const auto& set = kernels().counts<std::uint16_t>();
  thread_local Scratch<std::uint32_t> scratch;
  std::uint32_t* zeros = scratch.reserve(static_cast<std::size_t>(bins + 2 * m + 2));
  std::fill_n(zeros, m + 1, std::uint32_t{0});
  std::uint32_t* second = zeros + m + 1;
  set.second_sum(prefix, static_cast<std::size_t>(bins + m + 1), second);
  // Where most bins are empty, the weights are fewer than the bins.
  constexpr std::int64_t bins_of_weight = 3;  // in the time of one weight
  if (bins < bins_of_weight * static_cast<std::int64_t>(layer.size))
    return set.log_force<T>()(prefix, second, bins, m, log, table);
  const auto* theta = static_cast<const Storage*>(layer.theta);
  for_slots<T>(theta, 0, layer.size, binning,
               [&](const T*, const std::int32_t* slot, std::size_t size, std::size_t) {
                 for (std::size_t i = 0; i < size; ++i)
                   table[slot[i]] =
                       static_cast<T>(narrow_log_force(prefix, second, slot[i], m, log));
               });
}

// The force on every bin that has weights, times strength.
template <class Storage, class T>
void force_table(const Layer& layer, const Binning<T>& binning, const CouplingStep& step,
                 T* table) {
  const auto* theta = static_cast<const Storage*>(layer.theta);
  const Sample sample(step.fraction, step.seed, step.step, layer.index, layer.first);
  const Pull pull = step.pull(layer);
  const bool linear = step.potential == Potential::linear;
  const bool narrow = layer.size < narrow_size && (linear || layer.bins <= narrow_log_bins);
  if (step.method == Method::scan && binning.spacing > 0 && narrow) {
    // A small layer's time is that of its bins: 16-bit counts stay in the first-level cache.
    thread_local Scratch<std::uint16_t> scratch;
    const std::int64_t m = reach(layer.width, binning.spacing, layer.bins);
    Windows<std::uint16_t> windows(scratch, layer.bins, m);
    std::uint16_t* counts = windows.zeros();
    tally(theta, 0, layer.size, binning, sample, counts);
    if (!linear)
      return narrow_log_table<Storage, T>(layer, binning, pull, windows.prefix(counts), table);
    const auto& set = kernels().counts<std::uint16_t>();
    return set.force<T>()(windows.prefix(counts), layer.bins, m, pull.scale(), table);
  }
  thread_local Scratch<Count> scratch;
  Count* counts = scratch.reserve(static_cast<std::size_t>(layer.bins));
  histogram(theta, layer.size, binning, sample, counts);
  const auto force = step.method == Method::scan ? force_scan<T> : force_fft<T>;
  force(counts, layer.bins, binning.spacing, layer.width, pull, table);
}

template <class Storage, class T>
void add_layer(const Layer& layer, const Binning<T>& binning, const CouplingStep& step) {
  const auto* theta = static_cast<const Storage*>(layer.theta);
  auto* gradient = static_cast<Storage*>(layer.gradient);
  thread_local Scratch<T> scratch;
  T* table = scratch.reserve(static_cast<std::size_t>(layer.bins));
  force_table<Storage, T>(layer, binning, step, table);
  // Other threads share in the rest of a large layer: they must see this thread's table.
  gather_force<T>(theta, layer.size, binning, static_cast<const T*>(table), gradient);
}

// mean_field_energy() of a layer below narrow_size. The distances of all pairs within the reach add
// up to k times (weights in lower bins - weights in higher bins) of each weight, k being its bin: a
// few counts for each weight, however many bins there are.
template <class Storage, class T>
double small_energy(const Layer& layer, const Binning<T>& binning) {
  const auto* theta = static_cast<const Storage*>(layer.theta);
  thread_local Scratch<std::uint16_t> scratch;
  const std::int64_t m = reach(layer.width, binning.spacing, layer.bins);
  Windows<std::uint16_t> windows(scratch, layer.bins, m);
  std::uint16_t* counts = windows.zeros();
  tally(theta, 0, layer.size, binning, Sample(), counts);
  const std::uint16_t* prefix = windows.prefix(counts);
  std::int64_t distance = 0;
  std::int64_t pairs = 0;
  const auto add = [&](const T*, const std::int32_t* slot, std::size_t size, std::size_t) {
    std::uint32_t inside = 0;  // of a block's weights, all weights: below 2^26
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint16_t* at = prefix + slot[i];
      const std::int32_t first = at[-m];
      const std::int32_t behind = at[m + 1];
      distance += std::int64_t{slot[i]} * (at[0] + at[1] - first - behind);  // below - above
      inside += static_cast<std::uint32_t>(behind - first);
    }
    pairs += std::int64_t{inside} - static_cast<std::int64_t>(size);
  };
  for_slots<T>(theta, 0, layer.size, binning, add);
  return binning.spacing * static_cast<double>(2 * distance) -
         layer.width * static_cast<double>(pairs);
}

// strength times the energy, from a histogram of all weights
template <class Storage, class T>
double energy(const Layer& layer, const Binning<T>& binning, Potential potential) {
  if (layer.size < narrow_size && potential == Potential::linear)
    return layer.strength * small_energy<Storage, T>(layer, binning);
  const auto* theta = static_cast<const Storage*>(layer.theta);
  thread_local Scratch<Count> scratch;
  Count* counts = scratch.reserve(static_cast<std::size_t>(layer.bins));
  histogram(theta, layer.size, binning, Sample(), counts);
  return layer.strength *
         mean_field_energy(counts, layer.bins, binning.spacing, layer.width, potential);
}

Schedule schedule_of(const std::vector<Layer>& layers) {
  const auto size = [&](std::size_t l) { return layers[l].size; };
  return Schedule(layers.size(), size, [&](std::size_t l) {
    return layers[l].size + static_cast<std::size_t>(layers[l].bins);
  });
}

// The bins of each layer, unless one is refused.
std::vector<Refusal> bin_all(const std::vector<Layer>& layers, const Schedule& schedule,
                             std::vector<AnyBinning>& binnings) {
  binnings.resize(layers.size());
  std::vector<Refusal> refusals;
  std::mutex refusing;
  schedule.run([&](std::size_t l) {
    try {
      binnings[l] = bin(layers[l]);
    } catch (const std::invalid_argument& error) {
      const std::lock_guard lock(refusing);
      refusals.push_back({l, error.what()});
    }
  });
  return refusals;
}

}  // namespace

std::vector<Refusal> check(const std::vector<Layer>& layers) {
  std::vector<AnyBinning> binnings;
  return bin_all(layers, schedule_of(layers), binnings);
}

std::vector<Refusal> add_force(const std::vector<Layer>& layers, const CouplingStep& step) {
  const Schedule schedule = schedule_of(layers);
  std::vector<AnyBinning> binnings;
  std::vector<Refusal> refusals = bin_all(layers, schedule, binnings);
  if (!refusals.empty()) return refusals;

  const Uninterruptible writing;  // an interrupted step would leave some gradients without a force
  schedule.run([&](std::size_t l) {
    with_storage(layers[l].scalar, [&]<class Storage, class T>(Storage, T) {
      add_layer<Storage, T>(layers[l], std::get<Binning<T>>(binnings[l]), step);
    });
  });
  return {};
}

std::vector<Refusal> energies(const std::vector<Layer>& layers, Potential potential,
                              double* energies) {
  const Schedule schedule = schedule_of(layers);
  std::vector<AnyBinning> binnings;
  std::vector<Refusal> refusals = bin_all(layers, schedule, binnings);
  if (!refusals.empty()) return refusals;

  schedule.run([&](std::size_t l) {
    energies[l] = with_storage(layers[l].scalar, [&]<class Storage, class T>(Storage, T) {
      return energy<Storage, T>(layers[l], std::get<Binning<T>>(binnings[l]), potential);
    });
  });
  return {};
}

}  // namespace softq
