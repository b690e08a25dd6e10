// The exact interaction of all pairs: by sorting, and by the direct sum over tiles.
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "block.h"
#include "once.h"
#include "softq/checks.h"
#include "softq/well.h"
#include "sort.h"

namespace softq::cuda {
namespace {

constexpr unsigned items = 4;  // sorted weights of a thread, side by side
constexpr std::uint64_t chunk = items * block_threads;

std::uint64_t chunks_of(std::uint64_t size) { return (size + chunk - 1) / chunk; }

template <class Holds>
__device__ std::uint64_t first_where(std::uint64_t from, std::uint64_t to, const Holds& holds) {
  while (from < to) {
    const std::uint64_t middle = from + (to - from) / 2;
    if (holds(middle)) {
      to = middle;
    } else {
      from = middle + 1;
    }
  }
  return from;
}

// The weights that interact with sorted weight i are [low(i), high(i)). Both only grow with i: the
// block's first and last weights bound the searches of all.
template <class T>
class Neighbours {
 public:
  __device__ Neighbours(const T* sorted, std::uint64_t size, double width, std::uint64_t begin,
                        std::uint64_t end, std::uint64_t* shared)
      : sorted_(sorted), width_(width), bounds_(shared) {
    if (threadIdx.x == 0) shared[0] = find_low(begin, 0, begin);
    if (threadIdx.x == 32) shared[1] = find_low(end - 1, 0, end - 1);
    if (threadIdx.x == 64) shared[2] = find_high(begin, begin + 1, size);
    if (threadIdx.x == 96) shared[3] = find_high(end - 1, end, size);
    __syncthreads();
  }

  __device__ double at(std::uint64_t i) const { return static_cast<double>(sorted_[i]); }
  __device__ std::uint64_t low(std::uint64_t i) const {
    return find_low(i, bounds_[0], bounds_[1] < i ? bounds_[1] : i);
  }
  __device__ std::uint64_t high(std::uint64_t i) const {
    return find_high(i, bounds_[2] > i ? bounds_[2] : i + 1, bounds_[3]);
  }

 private:
  __device__ std::uint64_t find_low(std::uint64_t i, std::uint64_t from, std::uint64_t to) const {
    const double x = at(i);
    return first_where(from, to, [&](std::uint64_t j) { return x - at(j) < width_; });
  }
  __device__ std::uint64_t find_high(std::uint64_t i, std::uint64_t from, std::uint64_t to) const {
    const double x = at(i);
    return first_where(from, to, [&](std::uint64_t j) { return !(at(j) - x < width_); });
  }

  const T* sorted_;
  double width_;
  const std::uint64_t* bounds_;
};

struct Part {
  std::int64_t pairs;       // with the upper weight in this chunk
  std::int64_t straddling;  // the change over the chunk; then the number at its first gap
  double distance;
};

template <class T>
__global__ void __launch_bounds__(block_threads)
    pairs_kernel(const T* sorted, std::uint64_t size, double width, Part* parts) {
  __shared__ std::uint64_t bounds[4];
  __shared__ std::int64_t shared[2][warps];
  const std::uint64_t begin = blockIdx.x * chunk;
  const std::uint64_t end = begin + chunk < size ? begin + chunk : size;
  const Neighbours<T> near(sorted, size, width, begin, end, bounds);
  std::int64_t below = 0;
  std::int64_t above = 0;
  for (std::uint64_t i = begin + threadIdx.x; i < end; i += block_threads) {
    below += static_cast<std::int64_t>(i - near.low(i));
    above += static_cast<std::int64_t>(near.high(i) - i - 1);
  }
  below = reduce(below, shared[0], Sum<std::int64_t>{});
  above = reduce(above, shared[1], Sum<std::int64_t>{});
  if (threadIdx.x == 0) parts[blockIdx.x] = {below, above - below, 0};
}

// The pairs that straddle the gap before each chunk, by one block.
__global__ void __launch_bounds__(block_threads)
    straddling_kernel(Part* parts, std::uint64_t count) {
  __shared__ std::int64_t shared[warps];
  std::int64_t carry = 0;
  for (std::uint64_t first = 0; first < count; first += block_threads) {
    const std::uint64_t at = first + threadIdx.x;
    const std::int64_t change = at < count ? parts[at].straddling : 0;
    std::int64_t total;
    const std::int64_t before = carry + scan(change, shared, total) - change;
    if (at < count) parts[at].straddling = before;
    carry += total;
    __syncthreads();
  }
}

// The sum over the chunk's gaps of their length times the pairs that straddle them.
template <class T>
__global__ void __launch_bounds__(block_threads)
    distance_kernel(const T* sorted, std::uint64_t size, double width, Part* parts) {
  __shared__ std::uint64_t bounds[4];
  __shared__ std::int64_t sums[warps];
  __shared__ double distances[warps];
  const std::uint64_t begin = blockIdx.x * chunk;
  const std::uint64_t end = begin + chunk < size ? begin + chunk : size;
  const Neighbours<T> near(sorted, size, width, begin, end, bounds);
  const std::uint64_t mine = begin + threadIdx.x * items;
  std::int64_t changes[items];
  std::int64_t change = 0;
  for (unsigned j = 0; j < items; ++j) {
    const std::uint64_t i = mine + j;
    changes[j] = i < end ? static_cast<std::int64_t>(near.high(i) - i - 1) -
                               static_cast<std::int64_t>(i - near.low(i))
                         : 0;
    change += changes[j];
  }
  std::int64_t total;
  std::int64_t over = parts[blockIdx.x].straddling + scan(change, sums, total) - change;
  double distance = 0;
  for (unsigned j = 0; j < items; ++j) {
    const std::uint64_t i = mine + j;
    if (i < end && over > 0) distance += (near.at(i) - near.at(i - 1)) * static_cast<double>(over);
    over += changes[j];
  }
  distance = reduce(distance, distances, Sum<double>{});
  if (threadIdx.x == 0) parts[blockIdx.x].distance = distance;
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    force_kernel(const T* sorted, const std::uint32_t* indices, std::uint64_t size, double width,
                 std::int64_t* force) {
  __shared__ std::uint64_t bounds[4];
  const std::uint64_t begin = blockIdx.x * chunk;
  const std::uint64_t end = begin + chunk < size ? begin + chunk : size;
  const Neighbours<T> near(sorted, size, width, begin, end, bounds);
  for (std::uint64_t i = begin + threadIdx.x; i < end; i += block_threads) {
    const double x = near.at(i);
    const std::uint64_t low = near.low(i);
    const std::uint64_t high = near.high(i);
    const std::uint64_t tie = first_where(low, i, [&](std::uint64_t j) { return near.at(j) == x; });
    const std::uint64_t tie_end =
        first_where(i + 1, high, [&](std::uint64_t j) { return near.at(j) != x; });
    force[indices[i]] =
        static_cast<std::int64_t>(tie - low) - static_cast<std::int64_t>(high - tie_end);
  }
}

__global__ void __launch_bounds__(block_threads)
    number_kernel(std::uint32_t* numbers, std::uint64_t size) {
  const std::uint64_t i = std::uint64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (i < size) numbers[i] = static_cast<std::uint32_t>(i);
}

// ----------------------------------------------------------------------------------- direct sums
constexpr unsigned tile = 256;  // threads of a block, and columns that they share
constexpr unsigned rows = 4;    // of a thread: one load of a column serves all
constexpr std::uint64_t strip = tile * rows;

// The columns are split between blocks, so that short arrays fill the device as well.
struct Tiling {
  std::uint64_t size, strips, splits, columns;

  explicit Tiling(std::uint64_t size_) : size(size_), strips((size_ + strip - 1) / strip) {
    const std::uint64_t wanted = 16 * processors() / std::max<std::uint64_t>(strips, 1);
    const std::uint64_t tiles = (size + tile - 1) / tile;
    splits = std::clamp<std::uint64_t>(wanted, 1, std::max<std::uint64_t>(tiles, 1));
    columns = (tiles + splits - 1) / splits * tile;
  }
};

// Calls body(row, x_i - x_j) for the block's rows i and columns j, except where i = j.
template <class T, class Body>
__device__ void for_pairs(const T* theta, const Tiling& tiling, std::uint64_t first_row,
                          const Body& body) {
  __shared__ double shared[tile];
  double x[rows];
  for (unsigned r = 0; r < rows; ++r) {
    const std::uint64_t i = first_row + r * tile;
    x[r] = i < tiling.size ? static_cast<double>(theta[i]) : 0;
  }
  const std::uint64_t begin = blockIdx.x % tiling.splits * tiling.columns;
  const std::uint64_t end =
      begin + tiling.columns < tiling.size ? begin + tiling.columns : tiling.size;
  for (std::uint64_t first = begin; first < end; first += tile) {
    __syncthreads();
    if (first + threadIdx.x < end)
      shared[threadIdx.x] = static_cast<double>(theta[first + threadIdx.x]);
    __syncthreads();
    const unsigned count = end - first < tile ? static_cast<unsigned>(end - first) : tile;
    for (unsigned j = 0; j < count; ++j) {
      for (unsigned r = 0; r < rows; ++r) {
        if (first + j != first_row + r * tile) body(r, x[r] - shared[j]);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(tile)
    direct_energy_kernel(const T* theta, const Tiling tiling, double width, double* parts) {
  const Well well{width};
  const std::uint64_t first_row = blockIdx.x / tiling.splits * strip + threadIdx.x;
  double energy[rows] = {};
  for_pairs(theta, tiling, first_row,
            [&](unsigned r, double difference) { energy[r] += well.energy(difference); });
  double sum = 0;
  for (unsigned r = 0; r < rows; ++r) {
    if (first_row + r * tile < tiling.size) sum += energy[r];
  }
  parts[std::uint64_t{blockIdx.x} * tile + threadIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(tile)
    direct_force_kernel(const T* theta, const Tiling tiling, double width, std::int64_t* force) {
  const Well well{width};
  const std::uint64_t first_row = blockIdx.x / tiling.splits * strip + threadIdx.x;
  int sum[rows] = {};
  for_pairs(theta, tiling, first_row, [&](unsigned r, double difference) {
    sum[r] += static_cast<int>(well.slope(difference));
  });
  for (unsigned r = 0; r < rows; ++r) {
    const std::uint64_t i = first_row + r * tile;
    // Integers: the order in which the blocks add does not matter.
    if (i < tiling.size)
      atomicAdd(reinterpret_cast<Word*>(force + i), static_cast<Word>(std::int64_t{sum[r]}));
  }
}

// ------------------------------------------------------------------------------------------ host
void check_weights(const Weights& weights, const Place& place) {
  refuse_capture(place.stream, "the interaction of all pairs");
  check_size(weights.size);
  const Layers layers(Layout::single(weights.size, weights.scalar, 1), Layers::Use::counts, place);
  measure(layers.model(), layers.groups({{weights.theta, nullptr, true}})[0], nullptr, false,
          place.stream);
  check_finite(layers.range(place.stream).nonfinite, weights.size);
}

template <class T>
double energy_by_sort(const T* theta, std::uint64_t size, double width, const Place& place) {
  const Array<T> sorted(size, place);
  sort(theta, sorted.data(), size, place);
  const std::uint64_t chunks = chunks_of(size);
  const Array<Part> parts(chunks, place);
  launch("launch of pairs_kernel", pairs_kernel<T>, chunks, block_threads, 0, place.stream,
         sorted.data(), size, width, parts.data());
  launch("launch of straddling_kernel", straddling_kernel, 1, block_threads, 0, place.stream,
         parts.data(), chunks);
  launch("launch of distance_kernel", distance_kernel<T>, chunks, block_threads, 0, place.stream,
         sorted.data(), size, width, parts.data());
  std::int64_t pairs = 0;
  double distance = 0;
  for (const Part& part : parts.download(place.stream)) {
    pairs += part.pairs;
    distance += part.distance;
  }
  return 2 * (distance - width * static_cast<double>(pairs));
}

template <class T>
double energy_direct(const T* theta, std::uint64_t size, double width, const Place& place) {
  const Tiling tiling(size);
  const Array<double> parts(tiling.strips * tiling.splits * tile, place);
  launch("launch of direct_energy_kernel", direct_energy_kernel<T>, tiling.strips * tiling.splits,
         tile, 0, place.stream, theta, tiling, width, parts.data());
  double energy = 0;
  for (const double part : parts.download(place.stream)) energy += part;
  return energy;
}

template <class T>
void force_by_sort(const T* theta, std::uint64_t size, double width, std::int64_t* force,
                   const Place& place) {
  const Array<T> sorted(size, place);
  const Array<std::uint32_t> numbers(size, place);
  const Array<std::uint32_t> indices(size, place);
  launch("launch of number_kernel", number_kernel, (size + block_threads - 1) / block_threads,
         block_threads, 0, place.stream, numbers.data(), size);
  sort(theta, sorted.data(), numbers.data(), indices.data(), size, place);
  launch("launch of force_kernel", force_kernel<T>, chunks_of(size), block_threads, 0, place.stream,
         sorted.data(), indices.data(), size, width, force);
}

template <class T>
void force_direct(const T* theta, std::uint64_t size, double width, std::int64_t* force,
                  const Place& place) {
  const Tiling tiling(size);
  check(cudaMemsetAsync(force, 0, size * sizeof(std::int64_t), place.stream), "cudaMemsetAsync");
  launch("launch of direct_force_kernel", direct_force_kernel<T>, tiling.strips * tiling.splits,
         tile, 0, place.stream, theta, tiling, width, force);
}

template <class Body>
auto with_floats(const Weights& weights, const Body& body) {
  switch (weights.scalar) {
    case Scalar::float32:
      return body(static_cast<const float*>(weights.theta));
    case Scalar::float64:
      return body(static_cast<const double*>(weights.theta));
    default:
      throw std::invalid_argument("weights must be float32 or float64");
  }
}

}  // namespace

double pair_energy(const Weights& weights, double width, bool direct, const Place& place) {
  check_weights(weights, place);
  if (weights.size < 2) return 0;
  return with_floats(weights, [&](const auto* theta) {
    return direct ? energy_direct(theta, weights.size, width, place)
                  : energy_by_sort(theta, weights.size, width, place);
  });
}

void pair_force(const Weights& weights, double width, bool direct, std::int64_t* force,
                const Place& place) {
  check_weights(weights, place);
  if (weights.size == 0) return;
  with_floats(weights, [&](const auto* theta) {
    direct ? force_direct(theta, weights.size, width, force, place)
           : force_by_sort(theta, weights.size, width, force, place);
  });
}

}  // namespace softq::cuda
