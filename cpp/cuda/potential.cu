// The potential on the bins by window sums, or by the convolution of fft.h.
#include <vector>

#include "block.h"
#include "fft.h"
#include "once.h"
#include "softq/potential.h"
#include "windows.h"

namespace softq::cuda {
namespace {

std::size_t blocks_for(std::int64_t bins) {
  return static_cast<std::size_t>((bins + block_threads - 1) / block_threads);
}

// Inclusive sums of counts[k] and of k counts[k], by one block.
__global__ void __launch_bounds__(block_threads)
    prefix_kernel(const std::int64_t* counts, std::int64_t bins, std::int64_t* population,
                  std::int64_t* moment) {
  __shared__ std::int64_t shared[2][warps];
  std::int64_t weights = 0;
  std::int64_t moments = 0;
  for (std::int64_t first = 0; first < bins; first += block_threads) {
    const std::int64_t k = first + threadIdx.x;
    const std::int64_t count = k < bins ? counts[k] : 0;
    std::int64_t total, total_moment;
    const std::int64_t sum = weights + scan(count, shared[0], total);
    const std::int64_t sum_moment = moments + scan(k * count, shared[1], total_moment);
    if (k < bins) {
      population[k] = sum;
      moment[k] = sum_moment;
    }
    weights += total;
    moments += total_moment;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(block_threads)
    potential_kernel(const std::int64_t* population, const std::int64_t* moment, std::int64_t bins,
                     double spacing, double width, double* out) {
  const std::int64_t k = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (k >= bins) return;
  const Window near = window(population, moment, bins, reach(width, spacing, bins), k);
  out[k] =
      spacing * static_cast<double>(near.distance) - width * static_cast<double>(near.population);
}

// The blocks' parts of the energy.
__global__ void __launch_bounds__(block_threads)
    energy_kernel(const std::int64_t* counts, const std::int64_t* population,
                  const std::int64_t* moment, std::int64_t bins, double spacing, double width,
                  EnergyPart* parts) {
  __shared__ double shared[2][warps];
  const std::int64_t k = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  const std::int64_t count = k < bins ? counts[k] : 0;
  EnergyPart part{0, 0};
  if (count > 0) {
    const std::int64_t m = reach(width, spacing, bins);
    part = EnergyPart::of(count, window(population, moment, bins, m, k));
  }
  part.pairs = reduce(part.pairs, shared[0], Sum<double>{});
  part.distance = reduce(part.distance, shared[1], Sum<double>{});
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

__global__ void narrow_kernel(const std::int64_t* counts, std::int64_t bins, unsigned* out) {
  const std::int64_t k = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (k < bins) out[k] = static_cast<unsigned>(counts[k]);
}

struct Prefix {
  Array<std::int64_t> population, moment;

  Prefix(const std::int64_t* counts, std::int64_t bins, const Place& place)
      : population(static_cast<std::size_t>(bins), place),
        moment(static_cast<std::size_t>(bins), place) {
    launch("launch of prefix_kernel", prefix_kernel, 1, block_threads, 0, place.stream, counts,
           bins, population.data(), moment.data());
  }
};

void potential_fft(const std::int64_t* counts, std::int64_t bins, double spacing, double width,
                   double* out, const Place& place) {
  refuse_capture(place.stream, "the potential by method 'fft'");
  const cudaStream_t stream = place.stream;
  const Array<unsigned> narrow(static_cast<std::size_t>(bins), place);
  launch("launch of narrow_kernel", narrow_kernel, blocks_for(bins), block_threads, 0, stream,
         counts, bins, narrow.data());
  const Array<double> spacings(1, place);
  spacings.upload({spacing}, stream);
  const Array<Row> rows(1, place);
  rows.upload({{narrow.data(), spacings.data(), width}}, stream);
  const Convolution convolution(bins, 1, place);
  convolution.run(rows.data(), stream);
  check(
      cudaMemcpyAsync(out, convolution.potential(), static_cast<std::size_t>(bins) * sizeof(double),
                      cudaMemcpyDeviceToDevice, stream),
      "cudaMemcpyAsync");
}

}  // namespace

void potential(const std::int64_t* counts, std::int64_t bins, double spacing, double width,
               Method method, double* out, const Place& place) {
  if (method == Method::fft) return potential_fft(counts, bins, spacing, width, out, place);
  const Prefix prefix(counts, bins, place);
  launch("launch of potential_kernel", potential_kernel, blocks_for(bins), block_threads, 0,
         place.stream, prefix.population.data(), prefix.moment.data(), bins, spacing, width, out);
}

double mean_field_energy(const std::int64_t* counts, std::int64_t bins, double spacing,
                         double width, const Place& place) {
  refuse_capture(place.stream, "the mean-field energy");
  const Prefix prefix(counts, bins, place);
  const Array<EnergyPart> parts(blocks_for(bins), place);
  launch("launch of energy_kernel", energy_kernel, blocks_for(bins), block_threads, 0, place.stream,
         counts, prefix.population.data(), prefix.moment.data(), bins, spacing, width,
         parts.data());
  EnergyPart sum{0, 0};
  for (const EnergyPart& part : parts.download(place.stream)) {
    sum.pairs += part.pairs;
    sum.distance += part.distance;
  }
  return spacing * sum.distance - width * sum.pairs;
}

}  // namespace softq::cuda
