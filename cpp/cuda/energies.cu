// Energies of wide units, from their counts.
#include <cmath>

#include "tables.h"

namespace softq::cuda {
namespace {

// Of the log potential: the length of the code in nats, the part of this thread.
__device__ double code_length(const Unit& unit, const unsigned* prefix, const std::int64_t* moments,
                              double spacing) {
  const std::int64_t bins = unit.bins;
  const std::int64_t m = reach(unit.width, spacing, bins);
  const LogPull pull({Potential::log}, unit.width, spacing, m);
  const auto size = static_cast<double>(prefix[bins - 1]);
  double nats = 0;
  for (std::int64_t k = threadIdx.x; k < bins; k += block_threads) {
    const unsigned count = prefix[k] - (k > 0 ? prefix[k - 1] : 0);
    if (count == 0) continue;
    const double occupancy = window(prefix, moments, bins, m, k).occupancy(pull);
    nats += static_cast<double>(count) * std::log(size / occupancy);
  }
  return nats;
}

// The tables of forces, which the next step makes anew, hold the moments.
__global__ void __launch_bounds__(block_threads)
    wide_energy_kernel(const Model model, const Interval wide, double* energies) {
  const std::uint32_t number = model.wide[wide.first + blockIdx.x];
  const Unit& unit = model.units[number];
  if (!unit.shared && unit.size == 0) return;
  __shared__ std::int64_t shared[warps];
  __shared__ double sums[2][warps];
  sum_up(model, unit, dynamic_shared<unsigned>());
  const unsigned* prefix = model.prefix + unit.table;
  auto* moments = reinterpret_cast<std::int64_t*>(model.tables + unit.table);
  const std::int64_t bins = unit.bins;
  sum_moments(prefix, bins, moments, shared);

  const double spacing = model.states[number].spacing;
  if (model.potential == Potential::log) {
    const double nats = reduce(code_length(unit, prefix, moments, spacing), sums[0], Sum<double>{});
    if (threadIdx.x == 0) energies[number] = unit.strength * nats;
    return;
  }
  const std::int64_t m = reach(unit.width, spacing, bins);
  EnergyPart sum{0, 0};
  for (std::int64_t k = threadIdx.x; k < bins; k += block_threads) {
    const std::int64_t count = prefix[k] - (k > 0 ? prefix[k - 1] : 0);
    if (count == 0) continue;
    const EnergyPart part = EnergyPart::of(count, window(prefix, moments, bins, m, k));
    sum.pairs += part.pairs;
    sum.distance += part.distance;
  }
  const double pairs = reduce(sum.pairs, sums[0], Sum<double>{});
  const double distance = reduce(sum.distance, sums[1], Sum<double>{});
  if (threadIdx.x == 0)
    energies[number] = unit.strength * (spacing * distance - unit.width * pairs);
}

}  // namespace

void wide_energies(const Model& model, const Group& group, double* energies, cudaStream_t stream) {
  launch("launch of wide_energy_kernel", wide_energy_kernel, group.wide.count, block_threads,
         warps * sizeof(unsigned), stream, model, group.wide, energies);
}

}  // namespace softq::cuda
