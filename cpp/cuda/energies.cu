// Energies of wide units, from their counts.
#include "tables.h"

namespace softq::cuda {
namespace {

// Sums of bins times counts, in the order of the bins, by one block.
__device__ void sum_moments(const unsigned* prefix, std::int64_t bins, std::int64_t* moments,
                            std::int64_t* shared) {
  std::int64_t carry = 0;
  for (std::int64_t first = 0; first < bins; first += block_threads) {
    const std::int64_t k = first + threadIdx.x;
    const unsigned count = k < bins ? prefix[k] - (k > 0 ? prefix[k - 1] : 0) : 0;
    std::int64_t total;
    const std::int64_t sum = carry + scan(k * static_cast<std::int64_t>(count), shared, total);
    if (k < bins) moments[k] = sum;
    carry += total;
    __syncthreads();
  }
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
